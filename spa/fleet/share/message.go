package share

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"sallyport/keys"
	"sallyport/keys/service"
)

// Version is the version of the messages that this package defines.
const Version = 1

// Limits of a message.
const (
	MaxLine    = 64 << 10    // bytes, with the line feed
	MaxValue   = 32 << 10    // bytes of a sealed value
	MaxSeconds = 1001 * 3600 // of a lease: longer than the longest grant
)

// A Kind says what a message is.
type Kind string

// What a server sends. Each of these messages except Hello and Leave is answered once, with its Seq.
const (
	// Hello is the first message: Version, Fleet, Site, Member, and Seconds, the shortest lease of what is spent.
	Hello Kind = "hello"
	// AskSession asks for the session of Run: it is made if the member has none, or kept alive. The answer is InSession,
	// Refused or Failed.
	AskSession Kind = "ask-session"
	// Read asks for what the store has, and for every change from then on. The answer is Begin, or Failed.
	Read Kind = "read"
	// Spend spends Nonce and ID for the attempt Token, in one transaction. The answer is Won, Spent, Repeat or Failed.
	Spend Kind = "spend"
	// Settle creates the outcome of ID with this Value, for Seconds. The answer is Done or Failed.
	Settle Kind = "settle"
	// PutFloor creates the floors named ID with this Value, for Seconds. The answer is Done with the Revision of the
	// key, or Failed.
	PutFloor Kind = "floor"
	// Ack writes Revision as the member's acknowledgement, if Run still has the session. The answer is Done or Failed.
	Ack Kind = "ack"
	// Leave ends the session of Run, if it has one. The server sends nothing after it.
	Leave Kind = "leave"
)

// What an agent sends.
const (
	// InSession means that Run has a session, which the store keeps for SessionTTL from when it was asked. Revision is
	// the revision at which the session was made: it changes if the session was lost and made again.
	InSession Kind = "session"
	// Refused means that another run has the member's session.
	Refused Kind = "refused"
	// Begin starts what the store has as of Revision. It replaces what the server knows. An Event for each key follows,
	// in the order of their revisions, and then End. Seq is that of the last Read, also if the agent begins again by
	// itself because its watch broke.
	Begin Kind = "begin"
	// Event means that Key (s/MEMBER, a/MEMBER, o/NAME or f/NAME) got this Value at Revision, or was deleted. After End
	// events come in the order of revisions, none left out.
	Event Kind = "event"
	// End ends what Begin started.
	End Kind = "end"
	// Won means that nonce and id now belong to this attempt, or did before.
	Won Kind = "won"
	// Spent means that the nonce belongs to another attempt.
	Spent Kind = "spent"
	// Repeat means that the nonce belongs to this attempt, and the id to the attempt Token. Value is the outcome, if
	// there is one.
	Repeat Kind = "repeat"
	// Done means that it is done.
	Done Kind = "done"
	// Failed means that nobody knows whether it was done.
	Failed Kind = "failed"
)

// A Name identifies an item in the store, or an attempt or run that made one. Zero is not a name.
type Name [16]byte

// A Token identifies one attempt to spend a packet, or one run of a member. It is random. Zero is not a token.
type Token [16]byte

// String returns 32 hex digits.
func (n Name) String() string { return hex.EncodeToString(n[:]) }

// String returns 32 hex digits.
func (t Token) String() string { return hex.EncodeToString(t[:]) }

// MarshalText returns 32 hex digits.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// MarshalText returns 32 hex digits.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText parses what MarshalText returns.
func (n *Name) UnmarshalText(text []byte) error { return parse16((*[16]byte)(n), text) }

// UnmarshalText parses what MarshalText returns.
func (t *Token) UnmarshalText(text []byte) error { return parse16((*[16]byte)(t), text) }

// ParseToken parses what String returns.
func ParseToken(text string) (Token, error) {
	var t Token
	return t, t.UnmarshalText([]byte(text))
}

func parse16(dst *[16]byte, text []byte) error {
	*dst = [16]byte{}
	if len(text) != 32 || strings.Trim(string(text), "0123456789abcdef") != "" || strings.Trim(string(text), "0") == "" {
		return errors.New("a name or token is 32 lower-case hex digits, not all zero")
	}
	hex.Decode(dst[:], text) // 32 hex digits always are one
	return nil
}

// A Message is what a server and its agent send each other. Kind says which fields are set; all others are zero.
type Message struct {
	Kind     Kind   `json:"kind"`
	Seq      uint64 `json:"seq,omitempty"` // a request's number, from 1 on; its answer has the same
	Version  int    `json:"version,omitempty"`
	Fleet    string `json:"fleet,omitempty"` // keys.FleetID
	Site     string `json:"site,omitempty"`
	Member   string `json:"member,omitempty"`
	Run      Token  `json:"run,omitzero"`
	Nonce    Name   `json:"nonce,omitzero"`
	ID       Name   `json:"id,omitzero"` // a request id's name; of PutFloor, the floors'
	Token    Token  `json:"token,omitzero"`
	Key      string `json:"key,omitempty"` // of an event, without the prefix
	Value    []byte `json:"value,omitempty"`
	Deleted  bool   `json:"deleted,omitempty"`
	Seconds  int64  `json:"seconds,omitempty"` // how long the store keeps it, at least
	Revision int64  `json:"revision,omitempty"`
}

// Prefix returns what the keys of a site begin with in the store.
func Prefix(fleet keys.FleetID, site string) string {
	return "sallyport/" + fleet.String() + "/share/" + site + "/"
}

// field is a set of a message's fields.
type field uint

const (
	seq field = 1 << iota
	version
	ids // fleet, site and member
	run
	nonce
	id
	token
	key
	value
	deleted
	seconds
	revision
)

// forms has the fields of each kind: those that it must have, and those that it may have.
var forms = map[Kind]struct{ must, may field }{
	Hello:      {version | ids | seconds, 0},
	AskSession: {seq | run, 0},
	Read:       {seq, 0},
	Spend:      {seq | nonce | id | token, 0},
	Settle:     {seq | id | value | seconds, 0},
	PutFloor:   {seq | id | value | seconds, 0},
	Ack:        {seq | run | revision, 0},
	Leave:      {run, 0},
	InSession:  {seq | revision, 0},
	Refused:    {seq, 0},
	Begin:      {seq | revision, 0},
	Event:      {key | revision, value | deleted},
	End:        {seq, 0},
	Won:        {seq, 0},
	Spent:      {seq, 0},
	Repeat:     {seq | token, value},
	Done:       {seq, revision},
	Failed:     {seq, 0},
}

// fields returns which fields are set.
func (m *Message) fields() field {
	var set field
	for _, f := range []struct {
		bit field
		is  bool
	}{
		{seq, m.Seq != 0}, {version, m.Version != 0}, {ids, m.Fleet != "" || m.Site != "" || m.Member != ""},
		{run, m.Run != Token{}}, {nonce, m.Nonce != Name{}}, {id, m.ID != Name{}}, {token, m.Token != Token{}},
		{key, m.Key != ""}, {value, len(m.Value) > 0}, {deleted, m.Deleted}, {seconds, m.Seconds != 0},
		{revision, m.Revision != 0},
	} {
		if f.is {
			set |= f.bit
		}
	}
	return set
}

// check returns an error unless the message has the form of its kind, and values within their limits.
func (m *Message) check() error {
	form, ok := forms[m.Kind]
	set := m.fields()
	switch {
	case !ok:
		return errors.New("unknown kind of message")
	case set&form.must != form.must || set&^(form.must|form.may) != 0:
		return fmt.Errorf("a message of kind %s lacks a field or has one too many", m.Kind)
	case len(m.Value) > MaxValue:
		return fmt.Errorf("a value is at most %d bytes", MaxValue)
	case m.Seconds < 0 || m.Seconds > MaxSeconds:
		return fmt.Errorf("a lease is 1 to %d seconds", MaxSeconds)
	case m.Revision < 0:
		return errors.New("a revision is positive")
	}
	switch m.Kind {
	case Hello:
		return m.checkHello()
	case Event:
		if m.Deleted == (len(m.Value) > 0) {
			return errors.New("an event has a value or deletes one")
		}
		return checkKey(m.Key)
	}
	return nil
}

func (m *Message) checkHello() error {
	_, err := keys.ParseFleetID(m.Fleet)
	return errors.Join(err, service.ValidName(m.Site), service.ValidName(m.Member))
}

// checkKey returns an error unless an event can be about this key.
func checkKey(key string) error {
	kind, name, _ := strings.Cut(key, "/")
	switch kind {
	case "s", "a":
		return service.ValidName(name)
	case "o", "f":
		return parse16(new([16]byte), []byte(name))
	}
	return errors.New("an event is about a key below s/, a/, o/ or f/")
}
