package spa

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"sallyport/spa/lab"

	"github.com/dchest/siphash"
	"golang.org/x/crypto/chacha20"
)

// TestSealingByTheSpecification makes the packets of the vectors again, by section 4 of PROTOCOL.md and without this
// package's code.
func TestSealingByTheSpecification(t *testing.T) {
	for name, v := range readVectors(t) {
		if v.one(t, "verdict") != "ok" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := specification{t, v}
			if got, want := s.packet(), v.hex(t, "packet"); !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
		})
	}
}

type specification struct {
	t *testing.T
	v vector
}

func (s specification) packet() []byte {
	request, sent := s.v.hex(s.t, "plaintext"), s.v.hex(s.t, "packet")
	nonce := s.hmac("nonce hedge", s.v.hex(s.t, "fresh"), request)[:24]
	packet := bytes.Clone(nonce)
	packet = binary.BigEndian.AppendUint64(packet, s.clientID()^s.siphash("gate mask", packet))
	packet = binary.BigEndian.AppendUint64(packet, s.siphash("gate tag", packet))
	padding := s.xor(nonce, sent[40:len(sent)-32])[len(request):]
	packet = append(packet, s.xor(nonce, append(request, padding...))...)
	return append(packet, s.hmac("request mac", []byte("sallyport 1 request"), s.v.hex(s.t, "server id"), packet)...)
}

func (s specification) clientID() uint64 { return binary.BigEndian.Uint64(s.v.hex(s.t, "client id")) }

func (s specification) key(master, use string, n int) []byte {
	key := lab.Value(hkdf.Key(sha256.New, unhex(s.t, master), nil, "sallyport 1 "+use, n))(s.t)
	return key
}

func (s specification) clientKey(use string) []byte {
	return s.key(s.v.one(s.t, "client key"), use, 32)
}

func (s specification) hmac(use string, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, s.clientKey(use))
	h.Write(bytes.Join(parts, nil))
	return h.Sum(nil)
}

// siphash uses the last gate key, the oldest, which is alice's in every vector.
func (s specification) siphash(use string, message []byte) uint64 {
	gates := s.v["gate key"]
	key := s.key(gates[len(gates)-1], use, 16)
	return siphash.Hash(binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:]), message)
}

func (s specification) xor(nonce, b []byte) []byte {
	c := lab.Value(chacha20.NewUnauthenticatedCipher(s.clientKey("request cipher"), nonce))(s.t)
	out := make([]byte, len(b))
	c.XORKeyStream(out, b)
	return out
}
