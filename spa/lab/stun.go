package lab

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// STUN makes STUN messages as a browser does for the connectivity checks of WebRTC.
type STUN struct {
	Packet      []byte
	Local       string // the user name that the browser makes up
	Password    string
	Transaction [12]byte
	Extra       []byte // attributes before MESSAGE-INTEGRITY
	Bare        bool   // without FINGERPRINT
}

// Check returns the request.
func (s STUN) Check() []byte {
	user := base64.RawStdEncoding.EncodeToString(s.Packet) + ":" + s.Local
	b := []byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}
	b = append(b, s.Transaction[:]...)
	b = Attribute(b, 0x0006, []byte(user))
	b = Attribute(b, 0x802a, []byte("tiebreak")) // ICE-CONTROLLING
	b = Attribute(b, 0x0025, nil)                // USE-CANDIDATE
	b = Attribute(b, 0x0024, []byte{0x6e, 0, 1, 0xff})
	b = append(b, s.Extra...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-20+24))
	mac := hmac.New(sha1.New, []byte(s.Password))
	mac.Write(b)
	b = Attribute(b, 0x0008, mac.Sum(nil))
	if s.Bare {
		return b
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-20+8))
	return Attribute(b, 0x8028, binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)^0x5354554e))
}

// Attribute appends an attribute of STUN, with its padding.
func Attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}
