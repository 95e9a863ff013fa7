package keys

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// An ID names a client key on the wire. It is no secret, but it is masked in the packet, so that an observer cannot
// link two packets of one client. Zero is not an id.
type ID uint64

// NewID returns a random id, never zero.
func NewID() ID {
	for {
		var b [8]byte
		rand.Read(b[:]) // never fails: crypto/rand ends the program instead
		if id := ID(binary.BigEndian.Uint64(b[:])); id != 0 {
			return id
		}
	}
}

// ParseID reads what String prints: 16 lower-case hex digits, not all zero.
func ParseID(s string) (ID, error) {
	if err := checkHex(s, 16); err != nil {
		return 0, fmt.Errorf("a client id is %w", err)
	}
	n, _ := strconv.ParseUint(s, 16, 64) // 16 hex digits always are one
	if n == 0 {
		return 0, errors.New("a client id must not be zero")
	}
	return ID(n), nil
}

// String returns 16 hex digits.
func (id ID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// A ServerID names a gateway in the MAC of a packet, so that a packet for one gateway is worthless at another. It is no
// secret. Zero is not an id.
type ServerID [16]byte

// NewServerID returns a random server id.
func NewServerID() ServerID {
	var id ServerID
	rand.Read(id[:])
	return id
}

// ParseServerID reads what String prints: 32 lower-case hex digits, not all zero.
func ParseServerID(s string) (ServerID, error) {
	if err := checkHex(s, 32); err != nil {
		return ServerID{}, fmt.Errorf("a server id is %w", err)
	}
	var id ServerID
	hex.Decode(id[:], []byte(s)) // 32 hex digits always are one
	if id == (ServerID{}) {
		return ServerID{}, errors.New("a server id must not be zero")
	}
	return id, nil
}

// String returns 32 hex digits.
func (id ServerID) String() string { return hex.EncodeToString(id[:]) }

// checkHex reports lengths, never contents: people paste keys where ids belong.
func checkHex(s string, digits int) error {
	if len(s) != digits {
		return fmt.Errorf("%d hex digits, this has %d characters", digits, len(s))
	}
	for i := range len(s) {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'a' || s[i] > 'f') {
			return fmt.Errorf("%d lower-case hex digits, and character %d is not one", digits, i+1)
		}
	}
	return nil
}
