package spa

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"time"

	"sallyport/keys"
	"sallyport/keys/mac"
	"sallyport/keys/service"
)

// Sizes and constants of the receipt, as PROTOCOL.md names them.
const (
	receiptBodyAt   = nonceLen
	receiptFixedLen = 27                              // version to source
	receiptMax      = MinLen - receiptBodyAt - macLen // 112
	againLen        = 8                               // of one that says too early
	grantingLen     = 5                               // of a service, without its ports
	portsLen        = 5
	moreBit         = 0x80
	letInCountBit   = 0x80 // beside the count: the source is a network, and a byte with its length follows
	// startedLabel begins what follows the services if any of them has started a program.
	startedLabel = "runs"
	markLen      = 5 // a label, and a bit for each service
	// onceLabel begins what follows that if any of the services is for one connection only.
	onceLabel = "once"
)

// ErrReceipt means that a datagram is no receipt for this request. The client ignores it and keeps waiting: anyone
// can send one.
var ErrReceipt = errors.New("not a receipt for this request")

// errReceiptFormat is returned by ParseReceipt.
var errReceiptFormat = errors.New("malformed receipt")

// Status is the result of a request. From 16 on it is the reason of a refusal, even one that this version does not
// know.
type Status uint8

// The statuses of a receipt.
const (
	Granted Status = 1
	Closed  Status = 2

	ReasonExpired        Status = 16 // the client's key is past its end
	ReasonNoService      Status = 17 // the server has no such service
	ReasonNotAllowed     Status = 18 // this client may not have it
	ReasonSourceRequired Status = 19 // this client has to state its address
	ReasonTooManyGrants  Status = 20 // more open at a time than a client may have
	ReasonTooManyPerHour Status = 21
	ReasonSuperseded     Status = 22 // closed or revoked after the command was given, or up to a window before
	ReasonIDReused       Status = 23 // the request id was that of another request
	ReasonFailed         Status = 24 // the firewall did not do it
	ReasonNotNow         Status = 25 // not at this time of the week
	ReasonTooManyPorts   Status = 26 // more ports open at a time than a client may have
	ReasonOtherFamily    Status = 27 // the service is at addresses of the other family only, IPv4 or IPv6
	ReasonTooEarly       Status = 28 // the server has just started; Again says from when on it takes packets
	ReasonNoProgram      Status = 29 // the program that the service runs cannot be started, so nothing was opened
	ReasonNoUses         Status = 30 // a recovery key was used as often as it may, or the server cannot count that
	ReasonNetwork        Status = 31 // the network or address to let in is not allowed for this client, from here
)

// String returns the status in words.
func (s Status) String() string {
	switch s {
	case Granted:
		return "granted"
	case Closed:
		return "closed"
	case ReasonExpired:
		return "the key has expired"
	case ReasonNoService:
		return "the server has no such service"
	case ReasonNotAllowed:
		return "not allowed for this client"
	case ReasonSourceRequired:
		return "this client must state its own address"
	case ReasonTooManyGrants:
		return "too many grants at a time"
	case ReasonTooManyPerHour:
		return "too many grants in an hour"
	case ReasonSuperseded:
		return "closed or revoked after the command was given, or shortly before"
	case ReasonIDReused:
		return "the request id was used for another request"
	case ReasonFailed:
		return "the server could not change its firewall"
	case ReasonNotNow:
		return "outside the hours that the gateway's administrator set"
	case ReasonTooManyPorts:
		return "too many ports at a time"
	case ReasonOtherFamily:
		return "the service has no address in the knock's family, IPv4 or IPv6"
	case ReasonTooEarly:
		return "too early: the server has just started"
	case ReasonNoProgram:
		return "the server cannot start the service's program now"
	case ReasonNoUses:
		return "this recovery key has no uses left, or the server has lost their count"
	case ReasonNetwork:
		return "this client may not let in that network or address, or not from here"
	}
	return "status " + strconv.Itoa(int(s))
}

// Refused reports whether the status is the reason of a refusal.
func (s Status) Refused() bool { return s >= ReasonExpired }

func (s Status) valid() bool { return s == Granted || s == Closed || s.Refused() }

// Granting is the result for one service of the request.
type Granting struct {
	// For is how long the service is open, counted from the receipt's time. It is sent in whole milliseconds, rounded
	// down, at most 2³²-1.
	For time.Duration
	// Ports are the ranges of the service, as many as fit.
	Ports []service.Ports
	// More means that the service has more ports than Ports lists.
	More bool
	// Started means that the server starts the service's program for this grant. It is sent with Granted only.
	Started bool
	// Once means that the first connection to a port takes the grant for it with it. It is sent with Granted only.
	Once bool
}

// Receipt is a server's answer to one request.
type Receipt struct {
	Status Status
	// Time is the server's clock, kept to the nanosecond.
	Time time.Time
	// Source is the address that the server saw and granted. It may be the zero Addr.
	Source netip.Addr
	// LetIn is the network or address that was let in, as requested: it is sent with Granted only, and Source is then its
	// first address. The zero Prefix means that Source was let in.
	LetIn netip.Prefix
	// Services has one entry for each service of the request, in its order. Only Granted and Closed have any; Granted
	// has all. OpenReceipt does not compare them with the request.
	Services []Granting
	// Again is sent with ReasonTooEarly only: packets stamped after it, by the client's own clock, are accepted.
	Again time.Time
}

// AppendBinary appends the receipt's encoding, at most 112 bytes, to b. Ranges of ports that do not fit are left out
// and marked by More: every service keeps its first, and the others are kept in order.
func (r Receipt) AppendBinary(b []byte) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	count := byte(len(r.Services))
	if r.LetIn.IsValid() {
		count |= letInCountBit
	}
	b = append(b, version, byte(r.Status), count)
	b = appendUint64(b, uint64(r.Time.UnixNano()))
	b = appendAddr(b, r.Source)
	if r.LetIn.IsValid() {
		b = append(b, byte(r.LetIn.Bits()))
	}
	if r.Status == ReasonTooEarly {
		return appendUint64(b, uint64(r.Again.UnixNano())), nil
	}
	spare := r.spareRanges()
	for _, g := range r.Services {
		n := min(len(g.Ports), 1+spare)
		spare -= max(0, n-1)
		b = g.append(b, n)
	}
	for _, m := range marks() {
		if bits := r.marked(m); bits != 0 {
			b = append(append(b, m.label...), bits)
		}
	}
	return b, nil
}

// mark is a label that follows the services, and what it says of each.
type mark struct {
	label string
	of    func(*Granting) *bool
}

// marks returns the marks in their order.
func marks() [2]mark {
	return [2]mark{
		{startedLabel, func(g *Granting) *bool { return &g.Started }},
		{onceLabel, func(g *Granting) *bool { return &g.Once }},
	}
}

// marked returns a bit for each service that has the mark, the lowest for the first.
func (r Receipt) marked(m mark) (bits byte) {
	for i := range r.Services {
		if *m.of(&r.Services[i]) {
			bits |= 1 << i
		}
	}
	return bits
}

// spareRanges returns how many ranges fit beyond the first of each service.
func (r Receipt) spareRanges() int {
	size := receiptFixedLen
	if r.LetIn.IsValid() {
		size++
	}
	for _, g := range r.Services {
		size += grantingLen + portsLen*min(1, len(g.Ports))
	}
	for _, m := range marks() {
		if r.marked(m) != 0 {
			size += markLen
		}
	}
	return (receiptMax - size) / portsLen
}

func (r Receipt) check() error {
	if !r.Status.valid() {
		return fmt.Errorf("a receipt cannot contain %v", r.Status)
	}
	if !representable(r.Time) || r.Status == ReasonTooEarly && !representable(r.Again) {
		return errors.New("the receipt's time is out of range: is the clock set?")
	}
	if r.Source.Unmap().IsUnspecified() {
		return fmt.Errorf("a receipt cannot contain %v", r.Source)
	}
	if err := r.checkLetIn(); err != nil {
		return err
	}
	if !validCount(r.Status, len(r.Services)) {
		return fmt.Errorf("a receipt with status %v cannot list %d services", r.Status, len(r.Services))
	}
	for _, g := range r.Services {
		if (g.Started || g.Once) && r.Status != Granted {
			return fmt.Errorf("a receipt with status %v starts and admits nothing", r.Status)
		}
		for _, p := range g.Ports {
			if !p.Valid() {
				return fmt.Errorf("a receipt cannot list %v", p)
			}
		}
	}
	return nil
}

func (r Receipt) checkLetIn() error {
	if r.LetIn == (netip.Prefix{}) {
		return nil
	}
	if r.Status != Granted || r.Source != r.LetIn.Addr() || len(r.Services) > letInServices {
		return fmt.Errorf("a receipt with status %v and source %v cannot let in %v", r.Status, r.Source, r.LetIn)
	}
	return service.CheckNetwork(r.LetIn)
}

// validCount reports whether a receipt with this status can list so many services.
func validCount(s Status, n int) bool {
	if s.Refused() {
		return n == 0
	}
	return n <= maxServices && (s != Granted || n > 0)
}

// append appends the service with its first n ranges.
func (g Granting) append(b []byte, n int) []byte {
	ms := min(max(0, g.For/time.Millisecond), math.MaxUint32)
	b = binary.BigEndian.AppendUint32(b, uint32(ms))
	told := byte(n)
	if g.More || n < len(g.Ports) {
		told |= moreBit
	}
	b = append(b, told)
	for _, p := range g.Ports[:n] {
		b = append(b, byte(p.Proto))
		b = binary.BigEndian.AppendUint16(b, p.Low)
		b = binary.BigEndian.AppendUint16(b, p.High)
	}
	return b
}

// ParseReceipt parses what AppendBinary appended, and nothing else: no byte may follow.
func ParseReceipt(b []byte) (Receipt, error) {
	r, rest, err := parseReceipt(b)
	if err != nil {
		return Receipt{}, err
	}
	if len(rest) > 0 {
		return Receipt{}, errReceiptFormat
	}
	return r, nil
}

// parseReceipt returns the receipt at the start of b, and what follows it.
func parseReceipt(b []byte) (Receipt, []byte, error) {
	if len(b) < receiptFixedLen || len(b) > receiptMax || b[0] != version {
		return Receipt{}, nil, errReceiptFormat
	}
	r := Receipt{Status: Status(b[1])}
	count := int(b[2] &^ letInCountBit)
	if !r.Status.valid() || !validCount(r.Status, count) {
		return Receipt{}, nil, errReceiptFormat
	}
	r.Time = time.Unix(0, int64(binary.BigEndian.Uint64(b[3:11])))
	source, ok := parseAddr(b[11:27])
	if !ok {
		return Receipt{}, nil, errReceiptFormat
	}
	r.Source = source
	if b[2]&letInCountBit != 0 {
		if len(b) == receiptFixedLen || r.Status != Granted || count > letInServices {
			return Receipt{}, nil, errReceiptFormat
		}
		if r.LetIn, ok = parseNetwork(b[receiptFixedLen-16 : receiptFixedLen+1]); !ok {
			return Receipt{}, nil, errReceiptFormat
		}
		b = b[1:]
	}
	b = b[receiptFixedLen:]
	if r.Status == ReasonTooEarly {
		if len(b) < againLen {
			return Receipt{}, nil, errReceiptFormat
		}
		r.Again = time.Unix(0, int64(binary.BigEndian.Uint64(b)))
		b = b[againLen:]
	}
	for range count {
		g, rest, err := parseGranting(b)
		if err != nil {
			return Receipt{}, nil, err
		}
		r.Services = append(r.Services, g)
		b = rest
	}
	for _, m := range marks() {
		b = r.parseMark(b, m)
	}
	return r, b, nil
}

// parseMark takes a mark from the start of b, if it is there, and returns what follows. Earlier versions have padding
// in its place.
func (r Receipt) parseMark(b []byte, m mark) []byte {
	if r.Status != Granted || len(b) < markLen || string(b[:len(m.label)]) != m.label {
		return b
	}
	bits := b[len(m.label)]
	if bits == 0 || int(bits)>>len(r.Services) != 0 {
		return b
	}
	for i := range r.Services {
		*m.of(&r.Services[i]) = bits>>i&1 == 1
	}
	return b[markLen:]
}

// parseGranting returns the service at the start of b, and what follows it.
func parseGranting(b []byte) (Granting, []byte, error) {
	if len(b) < grantingLen {
		return Granting{}, nil, errReceiptFormat
	}
	g := Granting{
		For:  time.Duration(binary.BigEndian.Uint32(b)) * time.Millisecond,
		More: b[4]&moreBit != 0,
	}
	n := int(b[4] &^ moreBit)
	b = b[grantingLen:]
	if n*portsLen > len(b) {
		return Granting{}, nil, errReceiptFormat
	}
	for range n {
		p := service.Ports{Proto: service.Proto(b[0]), Low: binary.BigEndian.Uint16(b[1:3]),
			High: binary.BigEndian.Uint16(b[3:5])}
		if !p.Valid() {
			return Granting{}, nil, errReceiptFormat
		}
		g.Ports = append(g.Ports, p)
		b = b[portsLen:]
	}
	return g, b, nil
}

// SealReceipt returns the packet that answers k: of the same length, under its key, and valid for no other request.
// Send it once, and only for a spent packet.
func SealReceipt(r Receipt, k *Knock, server keys.ServerID) ([]byte, error) {
	if k.Len < MinLen || k.Len > MaxLen || k.Key.IsZero() {
		return nil, errors.New("a receipt needs the knock that it answers")
	}
	var buf [receiptMax]byte
	plain, err := r.AppendBinary(buf[:0])
	if err != nil {
		return nil, err
	}
	return sealReceipt(plain, k, server), nil
}

// sealReceipt makes a packet from a receipt's encoding, whatever it contains.
func sealReceipt(plain []byte, k *Knock, server keys.ServerID) []byte {
	packet := make([]byte, k.Len)
	// The request's nonce is unique: with it in the hedge, even a stuck generator cannot give two receipts the same
	// nonce.
	nonce := newNonce(k.Key.Hedge(), k.Nonce[:], plain)
	copy(packet, nonce[:])
	end := len(packet) - macLen
	sealBody(packet[receiptBodyAt:end], plain, k.Key.ReceiptCipher(), &nonce)
	sum := receiptMAC(k.Key, server, k.Nonce[:], packet[:end])
	copy(packet[end:], sum[:])
	return packet
}

// receiptMAC returns the MAC of a receipt, for the nonce of the request that it answers and everything before the
// MAC.
func receiptMAC(k keys.Key, server keys.ServerID, request, before []byte) [macLen]byte {
	return mac.SHA256(k.ReceiptMAC(), []byte(labelReceipt), server[:], request, before)
}

// OpenReceipt opens a datagram that may be the receipt for a request sealed by s. Every error is ErrReceipt, with a
// zero Receipt.
func OpenReceipt(receipt, request []byte, s Sender) (Receipt, error) {
	if len(receipt) < MinLen || len(receipt) > MaxLen || len(receipt) != len(request) || s.Key.IsZero() {
		return Receipt{}, ErrReceipt
	}
	end := len(receipt) - macLen
	if !equalMAC(receipt[end:], receiptMAC(s.Key, s.Server, request[:nonceLen], receipt[:end])) {
		return Receipt{}, ErrReceipt
	}
	var plain [receiptMax]byte
	nonce := Nonce(receipt[:nonceLen])
	stream(plain[:], receipt[receiptBodyAt:receiptBodyAt+receiptMax], s.Key.ReceiptCipher(), &nonce)
	r, _, err := parseReceipt(plain[:])
	if err != nil {
		return Receipt{}, ErrReceipt
	}
	return r, nil
}
