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

	"sallyport/keys/words"
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
//
// A token of a recovery key begins with "spar1" and has a checksum with another label: a client that would use it
// unasked, to renew a grant or in both address families, does not take it.
//
// A token for a fleet begins with "spa2" and has a third label. Its address is the domain of the gateways, its server
// id is the fleet's id, its id is zero, its keys are those from which the gateways' are derived, and before the
// checksum are the gateways:
//
//	gateways                        2 bytes count; each a name and an address; sorted by name, each name once
const checksumSize = 8

// A form is one of the forms of a token.
type form struct{ prefix, label string }

var (
	ordinary = form{"spa1", "sallyport 1 token"}
	recovery = form{"spar1", "sallyport 1 recovery token"}
	forFleet = form{"spa2", "sallyport 1 fleet token"}
)

func (p *Profile) form() form {
	switch {
	case p.IsFleet():
		return forFleet
	case p.Recovery:
		return recovery
	}
	return ordinary
}

// ErrToken means that a text is not a token. It never quotes the text.
var ErrToken = errors.New("not a valid token: was it copied whole?")

var tokenText = base64.RawURLEncoding.Strict()

// Token returns the profile as an enrolment token, which is a secret; "" if the profile is not Valid.
func (p *Profile) Token() string {
	if p.Valid() != nil {
		return ""
	}
	b := p.appendBinary(nil)
	return p.form().prefix + tokenText.EncodeToString(append(b, p.form().checksum(b)...))
}

// Words returns the token of a recovery key as words to print, in lines; nil if the profile is not Valid, or of another
// key.
func (p *Profile) Words() []string {
	if p.Valid() != nil || !p.Recovery {
		return nil
	}
	b := p.appendBinary(nil)
	return words.Encode(append(b, recovery.checksum(b)...))
}

// ParseWords parses what Words returns, as typed. Its error names lines and words by their numbers.
func ParseWords(text string) (*Profile, error) {
	b, err := words.Decode(text)
	if err != nil {
		return nil, err
	}
	for n := len(b); n >= max(checksumSize, len(b)-words.Size+1); n-- { // zeros may follow
		if p, err := recovery.parse(b[:n]); err == nil {
			return p, nil
		}
		if b[n-1] != 0 {
			break
		}
	}
	return nil, ErrWords
}

// CheckWords returns an error if one line of words, counted from 0, has a mistake that shows without the others.
func CheckWords(line int, text string) error { return words.Check(line, text) }

// ErrWords means that each line of words may be right, and together they are not a token: lines are missing, or a word
// is wrong that its line's checksum does not show.
var ErrWords = errors.New("not a whole token: are all lines there, and in their order? Compare each word")

// ParseToken parses what Token returns, ignoring white space around it. Its error is ErrToken.
func ParseToken(s string) (*Profile, error) {
	s = strings.TrimSpace(s)
	for _, f := range []form{recovery, ordinary, forFleet} {
		if text, ok := strings.CutPrefix(s, f.prefix); ok {
			return f.decode(text)
		}
	}
	return nil, ErrToken
}

// decode decodes what follows the prefix of a token.
func (f form) decode(text string) (*Profile, error) {
	b, err := tokenText.DecodeString(text)
	// Decoding tolerates line breaks and more: the text must be the one token of the profile.
	if err != nil || len(text) != tokenText.EncodedLen(len(b)) {
		return nil, ErrToken
	}
	return f.parse(b)
}

// parse parses the bytes of a token.
func (f form) parse(b []byte) (*Profile, error) {
	if len(b) < checksumSize {
		return nil, ErrToken
	}
	body, sum := b[:len(b)-checksumSize], b[len(b)-checksumSize:]
	if subtle.ConstantTimeCompare(sum, f.checksum(body)) != 1 {
		return nil, ErrToken
	}
	p := f.parseBinary(body)
	if p.Valid() != nil || !bytes.Equal(p.appendBinary(nil), body) {
		return nil, ErrToken
	}
	return p, nil
}

func (f form) checksum(body []byte) []byte {
	h := sha256.New()
	h.Write([]byte(f.label))
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
	if p.IsFleet() {
		b = append(b, p.Fleet[:]...)
	} else {
		b = append(b, p.ServerID[:]...)
	}
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
	if !p.IsFleet() {
		return b
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.Gateways)))
	for _, name := range slices.Sorted(maps.Keys(p.Gateways)) {
		b = appendText(appendText(b, name), p.Gateways[name])
	}
	return b
}

func appendText(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

// parseBinary parses the fields of a token. It reads missing bytes as zeros: comparing with the token of the result is
// strict.
func (form form) parseBinary(body []byte) *Profile {
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
	p.Recovery = form == recovery
	if form != forFleet {
		return p
	}
	p.Fleet, p.ServerID, p.Gateways = FleetID(p.ServerID), ServerID{}, make(map[string]string)
	for range binary.BigEndian.Uint16(f.next(2)) {
		name := f.text()
		p.Gateways[name] = f.text()
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
