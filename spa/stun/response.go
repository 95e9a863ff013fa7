package stun

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// Signed reports whether a request that Packet accepts was signed with the password of its receiver, which is the
// ice-pwd that the page gave the browser.
func Signed(message []byte, password string) bool {
	_, at := parse(message)
	if at == 0 {
		return false
	}
	got := message[at+attributeLen : at+attributeLen+integrityLen]
	want := sign(message[:at], password)
	return hmac.Equal(got, want[:])
}

// sign returns the MESSAGE-INTEGRITY of a message that ends before that attribute (RFC 8489, section 14.5): HMAC-SHA1
// (RFC 2104) under a password of at most 64 bytes, without an allocation.
func sign(before []byte, password string) [sha1.Size]byte {
	var inner [sha1.BlockSize + MaxLen]byte
	var outer [sha1.BlockSize + sha1.Size]byte
	copy(inner[:], password)
	copy(outer[:], password)
	for i := range sha1.BlockSize {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	n := copy(inner[sha1.BlockSize:], before)
	setLength(inner[sha1.BlockSize:], n+attributeLen+integrityLen)
	sum := sha1.Sum(inner[:sha1.BlockSize+n])
	copy(outer[sha1.BlockSize:], sum[:])
	return sha1.Sum(outer[:])
}

// setLength sets the length in the header of a message that will have n bytes.
func setLength(message []byte, n int) { binary.BigEndian.PutUint16(message[2:], uint16(n-headerLen)) }

// Granted returns the response to a request that was granted, which a browser takes for a working connection: signed
// with the password, for the address that the request came from. It is shorter than any request.
func Granted(message []byte, password string, from netip.AddrPort) []byte {
	b := header(message, success)
	ip := from.Addr().AsSlice()
	b = attribute(b, xorMappedAddress, 4+len(ip))
	family := byte(1)
	if len(ip) == 16 {
		family = 2
	}
	b = append(b, 0, family)
	b = binary.BigEndian.AppendUint16(b, from.Port()^cookie>>16)
	for i, x := range ip {
		b = append(b, x^message[4+i]) // the cookie and the transaction's id
	}
	return finish(b, password)
}

// Refused returns the response to a request that was refused: the error 403, Forbidden, which ends the browser's
// attempt. It is shorter than any request.
func Refused(message []byte, password string) []byte {
	b := header(message, failure)
	b = attribute(b, errorCode, 4)
	b = append(b, 0, 0, 4, 3)
	return finish(b, password)
}

// header returns the header of a response to a request.
func header(message []byte, kind uint16) []byte {
	b := make([]byte, 0, MinLen)
	b = binary.BigEndian.AppendUint32(b, uint32(kind)<<16)
	return append(b, message[4:headerLen]...)
}

func attribute(b []byte, kind uint16, length int) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, kind), uint16(length))
}

// finish appends MESSAGE-INTEGRITY and FINGERPRINT.
func finish(b []byte, password string) []byte {
	sum := sign(b, password)
	b = append(attribute(b, integrity, integrityLen), sum[:]...)
	setLength(b, len(b)+attributeLen+fingerprintLen)
	check := crc32.ChecksumIEEE(b) ^ fingerprintXOR
	return binary.BigEndian.AppendUint32(attribute(b, fingerprint, fingerprintLen), check)
}
