package spa

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"testing"
	"testing/cryptotest"

	"github.com/dchest/siphash"
	"golang.org/x/crypto/chacha20"

	"sallyport/keys"
	"sallyport/keys/mac"
	"sallyport/spa/lab"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b := lab.Value(hex.DecodeString(s))(t)
	return b
}

func wantHex(t *testing.T, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

// RFC 8439, section 2.4.2: the cipher below XChaCha20.
func TestChaCha20IsRFC8439(t *testing.T) {
	plain := "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the " +
		"future, sunscreen would be it."
	key := unhex(t, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	c := lab.Value(chacha20.NewUnauthenticatedCipher(key, unhex(t, "000000000000004a00000000")))(t)
	c.SetCounter(1)
	got := make([]byte, len(plain))
	c.XORKeyStream(got, []byte(plain))
	wantHex(t, got, "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0bf91b65c5524733ab8f593dabcd62b357"+
		"1639d624e65152ab8f530c359f0861d807ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"+
		"5af90bbf74a35be6b40b8eedf2785e42874d")
}

// draft-irtf-cfrg-xchacha-03, section 2.2.1.
func TestHChaCha20IsTheDrafts(t *testing.T) {
	got, err := chacha20.HChaCha20(unhex(t, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"),
		unhex(t, "000000090000004a0000000031415927"))
	lab.Must(t, err)
	wantHex(t, got, "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc")
}

// draft-irtf-cfrg-xchacha-03, appendix A.3.2.1: a key stream from block 0, like ours.
func TestStreamIsTheDrafts(t *testing.T) {
	plain := "The dhole (pronounced \"dole\") is also known as the Asiatic wild dog, red dog, and whistling dog. " +
		"It is about the size of a German shepherd but looks more like a long-legged fox. " +
		"This highly elusive and skilled jumper is classified with wolves, coyotes, jackals, and foxes in the " +
		"taxonomic family Canidae."
	key := [32]byte(unhex(t, "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f"))
	nonce := Nonce(unhex(t, "404142434445464748494a4b4c4d4e4f5051525354555658"))
	got := make([]byte, len(plain))
	stream(got, []byte(plain), &key, &nonce)
	wantHex(t, got, "4559abba4e48c16102e8bb2c05e6947f50a786de162f9b0b7e592a9b53d0d4e98d8d6410d540a1a6375b26d80dace4fa"+
		"b52384c731acbf16a5923c0c48d3575d4d0d2c673b666faa731061277701093a6bf7a158a8864292a41c48e3a9b4c0da"+
		"ece0f8d98d0d7e05b37a307bbb66333164ec9e1b24ea0d6c3ffddcec4f68e7443056193a03c810e11344ca06d8ed8a2b"+
		"fb1e8d48cfa6bc0eb4e2464b748142407c9f431aee769960e15ba8b96890466ef2457599852385c661f752ce20f9da0c"+
		"09ab6b19df74e76a95967446f8d0fd415e7bee2a12a114c20eb5292ae7a349ae577820d5520a1f3fb62a17ce6a7e68fa"+
		"7c79111d8860920bc048ef43fe84486ccb87c25f0ae045f0cce1e7989a9aa220a28bdd4827e751a24a6d5c62d790a663"+
		"93b93111c1a55dd7421a10184974c7c5")
}

// The SipHash paper, appendix A, and its authors' reference table for our two lengths.
func TestSipHashIsThePapers(t *testing.T) {
	key := unhex(t, "000102030405060708090a0b0c0d0e0f")
	k0, k1 := binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])
	message := unhex(t, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	for n, want := range map[int]uint64{15: 0xa129ca6149be45e5, 24: 0xb8ad50c6f649af94, 32: 0x7127512f72f27cce} {
		if got := siphash.Hash(k0, k1, message[:n]); got != want {
			t.Errorf("of %d bytes: got %#x, want %#x", n, got, want)
		}
	}
}

// RFC 5869, appendix A.3 (no salt, no info), and the keys as this package derives them.
func TestKeysAreRFC5869(t *testing.T) {
	okm := lab.Value(hkdf.Key(sha256.New, bytes.Repeat([]byte{0x0b}, 22), nil, "", 42))(t)
	wantHex(t, okm, "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")

	key, gate := testKey(0x80), testGate(0x40)
	for label, got := range map[string]*[32]byte{
		"sallyport 1 request cipher": key.RequestCipher(), "sallyport 1 request mac": key.RequestMAC(),
		"sallyport 1 receipt cipher": key.ReceiptCipher(), "sallyport 1 receipt mac": key.ReceiptMAC(),
		"sallyport 1 nonce hedge": key.Hedge(),
	} {
		wantHex(t, got[:], hex.EncodeToString(oneBlockHKDF(testBytes(0x80), label)))
	}
	wantHalves(t, gate.Mask, oneBlockHKDF(testBytes(0x40), "sallyport 1 gate mask"))
	wantHalves(t, gate.Tag, oneBlockHKDF(testBytes(0x40), "sallyport 1 gate tag"))
}

// oneBlockHKDF is HKDF-SHA256 without salt for up to 32 bytes, written with HMAC: HMAC(HMAC(zeros, key), info || 1).
func oneBlockHKDF(key [32]byte, info string) []byte {
	prk := mac.SHA256(new([32]byte), key[:])
	okm := mac.SHA256(&prk, []byte(info), []byte{1})
	return okm[:]
}

func wantHalves(t *testing.T, got func() (uint64, uint64), want []byte) {
	t.Helper()
	k0, k1 := got()
	if k0 != binary.LittleEndian.Uint64(want[:8]) || k1 != binary.LittleEndian.Uint64(want[8:16]) {
		t.Errorf("got %#x %#x, want the halves of %x", k0, k1, want[:16])
	}
}

func TestEqual64(t *testing.T) {
	for bit := range 64 {
		if equal64(0x0123456789abcdef, 0x0123456789abcdef^1<<bit) {
			t.Errorf("bit %d does not count", bit)
		}
	}
	if !equal64(0, 0) || !equal64(1<<63, 1<<63) {
		t.Error("equal numbers are not equal")
	}
}

// A random generator that repeats its bytes must not produce one nonce for two messages.
func TestAStuckGeneratorRepeatsNoNonce(t *testing.T) {
	sealed := func(change func(r *Request, s *Sender)) []byte {
		r, s := openSSH(), alice()
		change(&r, &s)
		cryptotest.SetGlobalRandom(t, 1)
		return mustSeal(t, r, s)
	}
	first := sealed(func(*Request, *Sender) {})
	if again := sealed(func(*Request, *Sender) {}); !bytes.Equal(first, again) {
		t.Fatal("the generator is not stuck: this test proves nothing")
	}
	for name, change := range map[string]func(r *Request, s *Sender){
		"time": func(r *Request, _ *Sender) { r.Time = r.Time.Add(1) },
		"id":   func(r *Request, _ *Sender) { r.ID[15]++ },
		"key":  func(_ *Request, s *Sender) { s.Key = testKey(0x90) },
	} {
		if other := sealed(change); bytes.Equal(first[:nonceLen], other[:nonceLen]) {
			t.Errorf("another %s has the same nonce", name)
		}
	}
	receipt := func(nonce Nonce) []byte {
		k := Knock{Nonce: nonce, Key: testKey(0x80), Len: MinLen}
		cryptotest.SetGlobalRandom(t, 1)
		return mustSealReceipt(t, deniedReceipt(), k)
	}
	if bytes.Equal(receipt(Nonce{1})[:nonceLen], receipt(Nonce{2})[:nonceLen]) {
		t.Error("receipts for two requests have one nonce")
	}
}

// Without fresh randomness, a request that is sealed twice would give the same packet twice.
func TestANonceIsFresh(t *testing.T) {
	request := mustSeal(t, openSSH(), alice())
	if other := mustSeal(t, openSSH(), alice()); bytes.Equal(request[:nonceLen], other[:nonceLen]) {
		t.Error("two packets have one nonce")
	}
	knock := mustOpen(t, request)
	if bytes.Equal(mustSealReceipt(t, deniedReceipt(), knock)[:nonceLen],
		mustSealReceipt(t, deniedReceipt(), knock)[:nonceLen]) {
		t.Error("two receipts have one nonce")
	}
}

var _ Clients = (*keys.Registry)(nil)
