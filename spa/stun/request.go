package stun

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

var ufragText = base64.RawStdEncoding.Strict()

// Packet returns the packet that a STUN request carries, in into. It does not allocate. That the request is signed is
// not checked: see Signed.
func Packet(into *[MaxPacket]byte, message []byte) ([]byte, bool) {
	user, _ := parse(message)
	text, local, ok := bytes.Cut(user, []byte{':'})
	n := ufragText.DecodedLen(len(text))
	if !ok || len(local) < minLocal || n < MinPacket || n > MaxPacket {
		return nil, false
	}
	// Decoding skips line breaks, and then decodes less.
	if got, err := ufragText.Decode(into[:], text); err != nil || got != n {
		return nil, false
	}
	return into[:n], true
}

// parse returns the user name of a request, and where its MESSAGE-INTEGRITY begins. The user name is nil if the message
// is not such a request.
func parse(message []byte) (user []byte, integrityAt int) {
	if len(message) < MinLen || len(message) > MaxLen || len(message)%4 != 0 ||
		binary.BigEndian.Uint32(message) != uint32(request<<16|(len(message)-headerLen)) ||
		binary.BigEndian.Uint32(message[4:]) != cookie {
		return nil, 0
	}
	for at := headerLen; at < len(message); {
		kind, n := binary.BigEndian.Uint16(message[at:]), int(binary.BigEndian.Uint16(message[at+2:]))
		value := at + attributeLen
		next := value + (n+3)&^3
		switch {
		case next > len(message):
			return nil, 0
		case kind == fingerprint:
			if integrityAt == 0 || n != fingerprintLen || next != len(message) || !intact(message[:at], message[value:]) {
				return nil, 0
			}
		case integrityAt != 0:
			return nil, 0
		case kind == integrity && n == integrityLen:
			integrityAt = at
		case kind == userName && user == nil:
			user = message[value : value+n]
		case kind < firstOptional && kind != priority && kind != useCandidate:
			return nil, 0
		}
		at = next
	}
	if integrityAt == 0 {
		return nil, 0
	}
	return user, integrityAt
}

// intact reports whether a FINGERPRINT is that of the bytes before it.
func intact(before, mark []byte) bool {
	return binary.BigEndian.Uint32(mark) == crc32.ChecksumIEEE(before)^fingerprintXOR
}
