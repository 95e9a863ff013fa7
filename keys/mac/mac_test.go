package mac

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"sallyport/spa/lab"
)

func wantHex(t *testing.T, got [sha256.Size]byte, want string) {
	t.Helper()
	if hex.EncodeToString(got[:]) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

// TestMACIsRFC4231: RFC 4231, section 4, except case 5, which truncates. HMAC pads a short key with zeros and hashes a
// long one, so each key of the RFC is equivalent to one of 32 bytes.
func TestMACIsRFC4231(t *testing.T) {
	rep := func(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }
	for name, tt := range map[string]struct {
		key, data []byte
		want      string
	}{
		"1": {rep(0x0b, 20), []byte("Hi There"),
			"b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"},
		"2": {[]byte("Jefe"), []byte("what do ya want for nothing?"),
			"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"},
		"3": {rep(0xaa, 20), rep(0xdd, 50),
			"773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"},
		"4": {lab.Value(hex.DecodeString("0102030405060708090a0b0c0d0e0f10111213141516171819"))(t), rep(0xcd, 50),
			"82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"},
		"6": {rep(0xaa, 131), []byte("Test Using Larger Than Block-Size Key - Hash Key First"),
			"60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"},
		"7": {rep(0xaa, 131), []byte("This is a test using a larger than block-size key and a larger than block-size data. " +
			"The key needs to be hashed before being used by the HMAC algorithm."),
			"9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"},
	} {
		t.Run(name, func(t *testing.T) {
			key := tt.key
			if len(key) > sha256.BlockSize {
				sum := sha256.Sum256(key)
				key = sum[:]
			}
			var k [32]byte
			copy(k[:], key)
			whole := SHA256(&k, tt.data)
			wantHex(t, whole, tt.want)
			parts := SHA256(&k, tt.data[:3], nil, tt.data[3:])
			wantHex(t, parts, tt.want)
		})
	}
}

func TestMACIsThatOfTheStandardLibrary(t *testing.T) {
	var key [32]byte
	message := make([]byte, Max)
	for n := range Max + 1 {
		rand.Read(key[:])
		rand.Read(message[:n])
		h := hmac.New(sha256.New, key[:])
		h.Write(message[:n])
		got := SHA256(&key, message[:n/3], message[n/3:n])
		wantHex(t, got, hex.EncodeToString(h.Sum(nil)))
	}
}

func TestMACRefusesToTruncate(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a message too long was authenticated in part")
		}
	}()
	SHA256(new([32]byte), make([]byte, Max), []byte{1})
}
