package keys

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
)

// A token is a profile on one line: "spa1" and the base64url, without padding, of
//
//	name, client, address, source   each 1 byte length, then the text
//	knock ports                     1 byte count, then 2 bytes each
//	server id                       16 bytes
//	gate key                        32 bytes
//	id                              8 bytes
//	key                             32 bytes
//	receipts                        1 byte, 0 or 1
//	services                        1 byte count; each a name, and 1 byte count of ports,
//	                                each a text; sorted by name, each name once
//	checksum                        8 bytes, the first of SHA-256(label || all before)
//
// Numbers are big-endian. Each profile has exactly one token. The checksum detects mistakes in pasting and typing; it
// authenticates nothing.
const (
	tokenPrefix  = "spa1"
	tokenLabel   = "sallyport 1 token"
	checksumSize = 8
)

// ErrToken means that a text is not a token. It never quotes the text.
var ErrToken = errors.New("not a valid token: was it copied whole?")

var tokenText = base64.RawURLEncoding.Strict()

// Token returns the profile as an enrolment token, which is a secret; "" if the profile is not Valid.
func (p *Profile) Token() string {
	if p.Valid() != nil {
		return ""
	}
	b := p.appendBinary(nil)
	return tokenPrefix + tokenText.EncodeToString(append(b, checksum(b)...))
}

// ParseToken parses what Token returns, ignoring white space around it. Its error is ErrToken.
func ParseToken(s string) (*Profile, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return nil, ErrToken
	}
	b, err := tokenText.DecodeString(text)
	if err != nil || len(b) < checksumSize {
		return nil, ErrToken
	}
	body, sum := b[:len(b)-checksumSize], b[len(b)-checksumSize:]
	if subtle.ConstantTimeCompare(sum, checksum(body)) != 1 {
		return nil, ErrToken
	}
	p := parseBinary(body)
	// Decoding tolerates line breaks and more: the text must be the one token of the profile.
	if p.Valid() != nil || !bytes.Equal(p.appendBinary(nil), body) || len(text) != tokenText.EncodedLen(len(b)) {
		return nil, ErrToken
	}
	return p, nil
}

func checksum(body []byte) []byte {
	h := sha256.New()
	h.Write([]byte(tokenLabel))
	h.Write(body)
	return h.Sum(nil)[:checksumSize]
}

// appendBinary appends the token's fields without the checksum.
func (p *Profile) appendBinary(b []byte) []byte {
	for _, s := range []string{p.Name, p.Client, p.Address, p.Source} {
		b = appendText(b, s)
	}
	b = append(b, byte(len(p.KnockPorts)))
	for _, port := range p.KnockPorts {
		b = binary.BigEndian.AppendUint16(b, port)
	}
	b = append(b, p.ServerID[:]...)
	b = append(b, p.Gate.bytes()...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.ID))
	b = append(b, p.Key.bytes()...)
	receipts := byte(0)
	if p.Receipts {
		receipts = 1
	}
	b = append(b, receipts, byte(len(p.Services)))
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		b = appendText(b, name)
		b = append(b, byte(len(p.Services[name])))
		for _, port := range p.Services[name] {
			b = appendText(b, port)
		}
	}
	return b
}

func appendText(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

// parseBinary parses the fields of a token. It reads missing bytes as zeros: comparing with the token of the result is
// strict.
func parseBinary(body []byte) *Profile {
	f := fields{rest: body}
	p := &Profile{Name: f.text(), Client: f.text(), Address: f.text(), Source: f.text()}
	for range f.count() {
		p.KnockPorts = append(p.KnockPorts, binary.BigEndian.Uint16(f.next(2)))
	}
	p.ServerID = ServerID(f.next(16))
	p.Gate = GateKeyFromBytes([Size]byte(f.next(Size)))
	p.ID = ID(binary.BigEndian.Uint64(f.next(8)))
	p.Key = KeyFromBytes([Size]byte(f.next(Size)))
	p.Receipts = f.count() == 1
	p.Services = make(map[string][]string)
	for range f.count() {
		name := f.text()
		for range f.count() {
			p.Services[name] = append(p.Services[name], f.text())
		}
	}
	return p
}

// fields consumes a token's binary form from the front.
type fields struct{ rest []byte }

func (f *fields) next(n int) []byte {
	field := make([]byte, n)
	f.rest = f.rest[copy(field, f.rest):]
	return field
}

func (f *fields) count() int { return int(f.next(1)[0]) }

func (f *fields) text() string { return string(f.next(f.count())) }
