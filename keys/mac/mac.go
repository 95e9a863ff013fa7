// Package mac computes HMAC-SHA256 without allocating: a flood of forged packets makes no garbage, and the subkeys of a
// hundred thousand clients take no time.
package mac

import (
	"crypto/sha256"
	"encoding/binary"
)

// Max is the longest message, in bytes: longer than what is authenticated of any packet.
const Max = 320

// SHA256 returns the HMAC-SHA256 (RFC 2104) of the parts, one after another. It panics if they are longer than Max.
func SHA256(key *[32]byte, parts ...[]byte) [sha256.Size]byte {
	var inner [sha256.BlockSize + Max]byte
	pad(inner[:sha256.BlockSize], key, 0x36)
	n := sha256.BlockSize
	for _, p := range parts {
		if len(p) > len(inner)-n {
			panic("mac: message too long to authenticate")
		}
		n += copy(inner[n:], p)
	}
	var outer [sha256.BlockSize + sha256.Size]byte
	pad(outer[:sha256.BlockSize], key, 0x5c)
	sum := sha256.Sum256(inner[:n])
	copy(outer[sha256.BlockSize:], sum[:])
	return sha256.Sum256(outer[:])
}

// pad writes one block: the key, then zeros, XORed with x in every byte. It works on words: byte by byte it would be
// a tenth of the time of Open.
func pad(block []byte, key *[32]byte, x byte) {
	word := uint64(x) * 0x0101010101010101
	for i := 0; i < len(key); i += 8 {
		binary.NativeEndian.PutUint64(block[i:], binary.NativeEndian.Uint64(key[i:])^word)
	}
	for i := len(key); i < sha256.BlockSize; i += 8 {
		binary.NativeEndian.PutUint64(block[i:], word)
	}
}
