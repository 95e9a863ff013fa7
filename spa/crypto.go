package spa

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"

	"github.com/dchest/siphash"
	"golang.org/x/crypto/chacha20"

	"sallyport/keys"
	"sallyport/keys/mac"
)

// Labels at the start of authenticated data: a request is never taken for a receipt.
const (
	labelRequest = "sallyport 1 request"
	labelReceipt = "sallyport 1 receipt"
)

// newNonce returns a nonce that is as random as the generator, and does not repeat for another message if the
// generator is stuck or was cloned with its machine.
func newNonce(hedge *[32]byte, message ...[]byte) Nonce {
	var fresh [32]byte
	rand.Read(fresh[:])
	parts := append(make([][]byte, 0, 3), fresh[:])
	sum := mac.SHA256(hedge, append(parts, message...)...)
	return Nonce(sum[:nonceLen])
}

// stream XORs src with the key stream of XChaCha20 (draft-irtf-cfrg-xchacha-03), from block 0 on, into dst.
func stream(dst, src []byte, key *[32]byte, nonce *Nonce) {
	c, err := chacha20.NewUnauthenticatedCipher(key[:], nonce[:])
	if err != nil {
		panic("spa: " + err.Error()) // only for wrong lengths, which the types exclude
	}
	c.XORKeyStream(dst, src)
}

// sealID masks a client's id under the packet's nonce. It is its own inverse.
func sealID(gate keys.GateKey, nonce []byte, id uint64) uint64 {
	k0, k1 := gate.Mask()
	return id ^ siphash.Hash(k0, k1, nonce)
}

// gateTag returns the tag of the first 32 bytes of a packet, its nonce and sealed id.
func gateTag(gate keys.GateKey, head []byte) uint64 {
	k0, k1 := gate.Tag()
	return siphash.Hash(k0, k1, head)
}

// equal64 compares in constant time.
func equal64(a, b uint64) bool {
	x := a ^ b
	return (x|-x)>>63 == 0
}

// equalMAC is equal64 for MACs.
func equalMAC(got []byte, want [macLen]byte) bool {
	return subtle.ConstantTimeCompare(got, want[:]) == 1
}

// randomLen returns a packet's length, uniform from MinLen to MaxLen.
func randomLen() int {
	const span = MaxLen - MinLen + 1
	for {
		var b [1]byte
		rand.Read(b[:])
		if b[0] < 256/span*span {
			return MinLen + int(b[0])%span
		}
	}
}

// appendUint64 appends a number as packets have it: big-endian.
func appendUint64(b []byte, n uint64) []byte { return binary.BigEndian.AppendUint64(b, n) }
