package spa

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"sallyport/keys/service"
)

// Sizes and constants of the request's plaintext, as PROTOCOL.md names them.
const (
	version = Version

	fixedLen   = 48 // version to source
	requestMax = 96 // the whole request, without its padding

	maxServices = 8
	maxFor      = math.MaxUint32 * time.Millisecond

	protoBit = 0x80 // marks a port among the services; the low bits are its Proto

	continuedBit = 1 // among the flags: the time of the command's first packet follows the services
	firstLen     = 8

	letInBit      = 2 // among the flags: a network follows the services
	letInLen      = 17
	letInServices = 7 // at most, so that a receipt has room for the network
)

// Version is the version of the protocol.
const Version = 1

// Type is what a request wants.
type Type uint8

// The types of request.
const (
	TypeOpen  Type = 1 // open the services for the sender's address
	TypeClose Type = 2 // close what this client opened of them
)

// String returns "open" or "close".
func (t Type) String() string {
	switch t {
	case TypeOpen:
		return "open"
	case TypeClose:
		return "close"
	}
	return fmt.Sprintf("type-%d", uint8(t))
}

// RequestID identifies one command of a client. All packets that a command sends to one address family have the same
// id, so that a retry is not a second request.
type RequestID [16]byte

// NewRequestID returns a random id.
func NewRequestID() RequestID {
	var id RequestID
	rand.Read(id[:]) // never fails, see crypto/rand
	return id
}

// String returns 32 hex digits.
func (id RequestID) String() string { return hex.EncodeToString(id[:]) }

// Request is what a client asks for.
type Request struct {
	ID   RequestID
	Type Type
	// Time is the client's clock when this packet was sealed, kept to the nanosecond.
	Time time.Time
	// First is the client's clock when the first packet of the command was sealed. The zero Time leaves it out, as
	// packets of the first 30 s do: a server remembers an id for that long. Later packets must have it, and it is before
	// Time.
	First time.Time
	// For is how long the services should be open, in whole milliseconds, at most 2³²-1. Zero means the service's
	// default. A close has none.
	For time.Duration
	// Source is the address that the client states as its own. The zero Addr means the address that the server sees.
	Source netip.Addr
	// Services are 1 to 8 different services, at most 7 with LetIn.
	Services []service.Service
	// LetIn is the network or address for which the services should be open, in place of the sender's address; in a
	// close, the grants that have an address in common with it end. The zero Prefix means the sender's address.
	LetIn netip.Prefix
}

// Digest is a hash of what must be equal in all packets of one command: type, duration, stated source, services in
// order and network, but not the time. It is the start of the SHA-256 of their encoding.
func (r Request) Digest() [8]byte {
	r.ID = RequestID{}
	r.Time, r.First = time.Unix(0, 0), time.Time{}
	var buf [requestMax]byte
	sum := sha256.Sum256(r.append(buf[:0]))
	return [8]byte(sum[:8])
}

// check returns why a request cannot be sealed, or nil.
func (r Request) check() error {
	if r.Type != TypeOpen && r.Type != TypeClose {
		return errors.New("a request must be to open or to close")
	}
	if !representable(r.Time) || !r.First.IsZero() && !representable(r.First) {
		return errors.New("the request's time is out of range: is the clock set?")
	}
	if !r.First.IsZero() && !r.First.Before(r.Time) {
		return errors.New("the command's first packet must be older than this one")
	}
	if err := checkFor(r.Type, r.For); err != nil {
		return err
	}
	if r.Source.Unmap().IsUnspecified() || r.Source.Zone() != "" {
		return fmt.Errorf("%v cannot be stated as a source address", r.Source)
	}
	if err := r.checkLetIn(); err != nil {
		return err
	}
	return r.checkServices()
}

func checkFor(t Type, d time.Duration) error {
	if t == TypeClose && d != 0 {
		return errors.New("a request to close has no duration")
	}
	if d < 0 || d > maxFor || d%time.Millisecond != 0 {
		return fmt.Errorf("a duration of %v cannot be requested: it must be whole milliseconds, at most %v", d, maxFor)
	}
	return nil
}

func (r Request) checkLetIn() error {
	if r.LetIn == (netip.Prefix{}) {
		return nil
	}
	if len(r.Services) > letInServices {
		return fmt.Errorf("a request that lets in %s names at most %d services", r.LetIn, letInServices)
	}
	if err := service.CheckNetwork(r.LetIn); err != nil {
		return fmt.Errorf("cannot be let in: %w", err)
	}
	return nil
}

func (r Request) checkServices() error {
	if len(r.Services) == 0 || len(r.Services) > maxServices {
		return fmt.Errorf("a request names 1 to %d services, not %d", maxServices, len(r.Services))
	}
	size := fixedLen
	if !r.First.IsZero() {
		size += firstLen
	}
	if r.LetIn.IsValid() {
		size += letInLen
	}
	for i, s := range r.Services {
		if !s.Valid() {
			return fmt.Errorf("%q is not a service or port", s)
		}
		if slices.Contains(r.Services[:i], s) {
			return fmt.Errorf("%s is requested twice", s)
		}
		size += serviceSize(s)
	}
	if size > requestMax {
		return fmt.Errorf("too many services for one packet (%d bytes of %d): split them into two requests",
			size-fixedLen, requestMax-fixedLen)
	}
	return nil
}

// representable reports whether the time fits into nanoseconds since 1970.
func representable(t time.Time) bool {
	return time.Unix(0, t.UnixNano()).Equal(t)
}

// append appends the encoding of a checked request.
func (r Request) append(b []byte) []byte {
	flags := byte(0)
	if !r.First.IsZero() {
		flags = continuedBit
	}
	if r.LetIn.IsValid() {
		flags |= letInBit
	}
	b = append(b, version, byte(r.Type), flags, byte(len(r.Services)))
	b = append(b, r.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time.UnixNano()))
	b = binary.BigEndian.AppendUint32(b, uint32(r.For/time.Millisecond))
	b = appendAddr(b, r.Source)
	for _, s := range r.Services {
		b = appendService(b, s)
	}
	if r.LetIn.IsValid() {
		b = append(appendAddr(b, r.LetIn.Addr()), byte(r.LetIn.Bits()))
	}
	if !r.First.IsZero() {
		b = binary.BigEndian.AppendUint64(b, uint64(r.First.UnixNano()))
	}
	return b
}

func appendService(b []byte, s service.Service) []byte {
	if s.Name != "" {
		b = append(b, byte(len(s.Name)))
		return append(b, s.Name...)
	}
	b = append(b, protoBit|byte(s.Proto))
	return binary.BigEndian.AppendUint16(b, s.Port)
}

func serviceSize(s service.Service) int {
	if s.Name != "" {
		return 1 + len(s.Name)
	}
	return 3
}

// appendAddr appends 16 bytes: IPv4 as ::ffff:a.b.c.d, no address as zeros.
func appendAddr(b []byte, a netip.Addr) []byte {
	a16 := a.As16()
	return append(b, a16[:]...)
}

// parseAddr is the inverse of appendAddr. It refuses 0.0.0.0, which is not an address: "no address" already has an
// encoding.
func parseAddr(b []byte) (netip.Addr, bool) {
	a := netip.AddrFrom16([16]byte(b))
	if a.IsUnspecified() {
		return netip.Addr{}, true
	}
	a = a.Unmap()
	return a, !a.IsUnspecified()
}

// parseRequest parses a request from requestMax bytes of a decrypted body. The rest is padding. Every
// error wraps ErrMalformed. Services are appended to into; names are those of known, as far as they are equal.
func parseRequest(b []byte, into []service.Service, known []string) (Request, error) {
	if len(b) < fixedLen {
		return Request{}, malformed("it ends early")
	}
	if b[0] != version {
		return Request{}, malformed("unknown version")
	}
	r := Request{Type: Type(b[1]), ID: RequestID(b[4:20])}
	if r.Type != TypeOpen && r.Type != TypeClose {
		return Request{}, malformed("unknown type")
	}
	if b[2]&^(continuedBit|letInBit) != 0 {
		return Request{}, malformed("unknown flags")
	}
	r.Time = time.Unix(0, int64(binary.BigEndian.Uint64(b[20:28])))
	r.For = time.Duration(binary.BigEndian.Uint32(b[28:32])) * time.Millisecond
	if r.Type == TypeClose && r.For != 0 {
		return Request{}, malformed("a duration in a close")
	}
	source, ok := parseAddr(b[32:48])
	if !ok {
		return Request{}, malformed("the source is not an address")
	}
	r.Source = source
	services, rest, err := parseServices(b[fixedLen:], int(b[3]), into, known)
	if err != nil {
		return Request{}, err
	}
	r.Services = services
	if b[2]&letInBit != 0 {
		if r.LetIn, rest, err = parseLetIn(rest, len(services)); err != nil {
			return Request{}, err
		}
	}
	if b[2]&continuedBit != 0 {
		if r.First, err = parseFirst(rest, r.Time); err != nil {
			return Request{}, err
		}
	}
	return r, nil
}

// parseLetIn returns the network at the start of b, and what follows it.
func parseLetIn(b []byte, services int) (netip.Prefix, []byte, error) {
	if len(b) < letInLen || services > letInServices {
		return netip.Prefix{}, nil, malformed("the network runs past the end, or has too many services before it")
	}
	p, ok := parseNetwork(b)
	if !ok {
		return netip.Prefix{}, nil, malformed("no network that can be let in")
	}
	return p, b[letInLen:], nil
}

// parseNetwork parses an address and a length. Each network has one encoding.
func parseNetwork(b []byte) (netip.Prefix, bool) {
	a, ok := parseAddr(b[:16])
	p := netip.PrefixFrom(a, int(b[16]))
	return p, ok && service.ValidNetwork(p)
}

// parseFirst returns the time at the start of b, which must be before that of the packet.
func parseFirst(b []byte, packet time.Time) (time.Time, error) {
	if len(b) < firstLen {
		return time.Time{}, malformed("the first time runs past the end")
	}
	first := time.Unix(0, int64(binary.BigEndian.Uint64(b)))
	if !first.Before(packet) {
		return time.Time{}, malformed("the first packet is not before this one")
	}
	return first, nil
}

// parseServices returns the services at the start of b, appended to services, and what follows them. What stands behind
// the end of services is from an earlier packet, maybe a copy of this one: equal names are taken from it.
func parseServices(b []byte, count int, services []service.Service, known []string) ([]service.Service, []byte, error) {
	if count == 0 || count > maxServices {
		return nil, nil, malformed("not 1 to 8 services")
	}
	for i := range count {
		var before string
		if i < cap(services) {
			before = services[:i+1][i].Name
		}
		s, n, err := parseOneService(b, known, before)
		if err != nil {
			return nil, nil, err
		}
		if slices.Contains(services, s) {
			return nil, nil, malformed("a service twice")
		}
		services = append(services, s)
		b = b[n:]
	}
	return services, b, nil
}

// parseOneService returns the first service in b and its length there.
func parseOneService(b []byte, known []string, before string) (service.Service, int, error) {
	if len(b) == 0 {
		return service.Service{}, 0, malformed("the services run past the end")
	}
	if b[0]&protoBit != 0 {
		return parsePortService(b)
	}
	n := 1 + int(b[0])
	if n > len(b) {
		return service.Service{}, 0, malformed("the services run past the end")
	}
	name := b[1:n]
	if len(name) > service.MaxName || service.ValidName(string(name)) != nil {
		return service.Service{}, 0, malformed("a bad service name")
	}
	return service.Service{Name: nameOf(name, known, before)}, n, nil
}

// nameOf returns the text of b: without an allocation if it is among known or is before.
func nameOf(b []byte, known []string, before string) string {
	if before == string(b) {
		return before
	}
	for _, name := range known {
		if name == string(b) {
			return name
		}
	}
	return string(b)
}

func parsePortService(b []byte) (service.Service, int, error) {
	if len(b) < 3 {
		return service.Service{}, 0, malformed("the services run past the end")
	}
	s := service.Service{Proto: service.Proto(b[0] &^ protoBit), Port: binary.BigEndian.Uint16(b[1:3])}
	if !s.Proto.Valid() {
		return service.Service{}, 0, malformed("unknown protocol")
	}
	if s.Port == 0 {
		return service.Service{}, 0, malformed("port 0")
	}
	return s, 3, nil
}
