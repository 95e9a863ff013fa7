// Package client knocks: it turns a host profile and a command into packets, sends them until the gateway's receipt
// arrives, and returns what the receipt says.
//
// A program that connects to something behind a gateway needs a [Dialer], whose DialContext knocks first and replaces
// that of a net.Dialer:
//
//	door := &client.Dialer{Profile: profile} // keys.ReadProfile reads one that spa-client import wrote
//	conn, err := door.DialContext(ctx, "tcp", "gw:22")
//
// [Open] and [Close] run one command, [Keep] keeps services open, and a [Plan] is what spa-client is built on: it
// yields the answer of each address family as it arrives.
//
//	plan, err := client.Prepare(ctx, profile, client.Command{Type: spa.TypeOpen, Services: services})
//	…
//	for answer := range plan.Knock(ctx) {
//		fmt.Println(answer.Verdict, answer.Until(0))
//	}
//
// # Addresses
//
// A gateway's name may have IPv4 and IPv6 addresses. The client knocks in both families independently and at the same
// time, because a grant is for one source address and the client has one in each. Within a family it tries the
// addresses and the knock ports in turn, one packet each.
//
// # Packets
//
// All packets of a command to one family carry the same request id, and each its own nonce and stamp, so the gateway
// acts once however many of them arrive. There are at most 16: the first retry comes after about 150 ms, the others at
// growing intervals over the time allowed. Packets sent more than 25 s after the first state when that was. A gateway
// that has just started may say from when on it accepts packets: the next ones are then sent at that time.
//
// Dial begins a connection beside the first packet, in the first family, so that knock and connection take one round
// trip together. If its SYN came before the grant, the guard has dropped it, and another connection is begun when the
// receipt arrives. So there are at most three sockets: this one, and one in each family. A connection that no receipt
// grants is closed, unless no answer came at all.
//
// Only authenticated answers count. The client ignores ICMP errors, and datagrams that are not a receipt for one of
// these packets, since anyone can forge them. It does not matter where a receipt comes from, only that the gateway made
// it.
//
// # Source
//
// A stated source address must equal the one that the gateway sees; otherwise the gateway stays silent. The client then
// does not retry without the statement: an attacker on the path would force just that, and take the grant. It asks a
// STUN server only if one is configured. The server's answer is not authenticated, so an attacker on that path can have
// its own address stated.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
)

// DefaultTimeout is how long to wait for an answer by default.
const DefaultTimeout = 10 * time.Second

// Errors of an Answer whose Verdict is Silent, and of WaitOpen.
var (
	// ErrNoAnswer means that packets were sent and no receipt came, or, if the gateway sends none, that the port did
	// not accept. A gateway deliberately stays silent about everything that it does not accept, so the cause is
	// unknown.
	ErrNoAnswer = errors.New("no answer")
	// errOver is the error of an Answer whose Verdict is Over.
	errOver = errors.New("granted, but over before the answer came")
	// ErrMismatch means that the gateway's receipt is authentic but does not match the command: it has a different
	// number of services, or answers an open as a close. It is unknown what the gateway did, and no other answer will
	// come.
	ErrMismatch = errors.New("the gateway's receipt does not match the request: a fault of the gateway")
	// ErrOnce is returned by WaitOpen if a service admits one connection only: trying would use it up.
	ErrOnce = errors.New("the first connection takes the grant with it")
	// ErrNoTCP is returned by WaitOpen if no TCP port was granted: there is nothing to try.
	ErrNoTCP = errors.New("no TCP port to wait for")
)

// CommandError is returned by Prepare for a command that does not fit a packet, or that no network can carry out: the
// caller must change the command.
type CommandError struct{ Err error }

// Error returns the wrapped error's text.
func (e *CommandError) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *CommandError) Unwrap() error { return e.Err }

// Command is a request to a gateway.
type Command struct {
	Type     spa.Type
	Services []service.Service
	For      time.Duration // zero: the service's own; must be zero for a close
	Source   Source        // zero: the profile's
	LetIn    netip.Prefix  // the network or address to let in; zero: that of this machine
	Timeout  time.Duration // for resolving, and again for the answer; zero: DefaultTimeout
	// Patience is how much longer than Timeout to wait if a gateway has just started and says when it accepts knocks.
	// The answer may then take Timeout once more.
	Patience time.Duration
	// Waiting is called in each family that waits for such a gateway. It may be nil.
	Waiting func(time.Duration)
	// Beside makes Knock try the first TCP port of an open's one service beside the first packet, which saves WaitOpen
	// a round trip. It is for services that are known to admit several connections: of another it uses up the grant,
	// as Plan.Spent then reports. With a recovery key it has no effect.
	Beside bool
}

// Plan is a command that is ready to send: all addresses are looked up, and it fits a packet. A Plan is for one Knock.
type Plan struct {
	Profile *keys.Profile
	Command Command // with its defaults filled in
	Routes  []Route // one for each address family, IPv4 first
	sender  spa.Sender
	net     network
	room    bool // in a packet, to state when the command began

	gateways []netip.AddrPort // all addresses, including unreachable ones
	port     uint16           // to connect to; 0: the service's only one
	hosts    []netip.Addr     // to connect to; none: the gateway that answered
	keep     bool             // keep the connection that a probe made
	sent     func(Route)      // called when the first packet of a route was sent; may be nil
	early    *early           // by Command.Beside; nil: there is none
}

// Route is how to reach one address family of the gateway.
type Route struct {
	ID     spa.RequestID
	To     []netip.AddrPort // tried in turn
	Own    netip.Addr       // this machine's address on that route, before any translation
	Source netip.Addr       // stated; the zero Addr asks for the address that the gateway sees
	Local  netip.Addr       // the address that packets are sent from; the zero Addr leaves it to the system
}

// Family returns "IPv4" or "IPv6".
func (r Route) Family() string {
	if r.To[0].Addr().Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// Verdict is how a knock ended.
type Verdict uint8

// The verdicts.
const (
	Silent  Verdict = iota // no usable answer: Answer.Err has the reason
	Opened                 // granted, by a receipt, or without receipts because the ports accept
	Closed                 // closed, by a receipt
	Refused                // refused by the gateway: the receipt has the reason
	Sent                   // sent to a gateway that sends no receipts; nothing can confirm it
	Over                   // granted, but a service's time was over when the receipt arrived
)

// String returns the verdict for programs to read.
func (v Verdict) String() string {
	switch v {
	case Silent:
		return "no answer"
	case Opened:
		return "open"
	case Closed:
		return "closed"
	case Refused:
		return "refused"
	case Sent:
		return "sent"
	case Over:
		return "over"
	}
	return fmt.Sprintf("verdict-%d", uint8(v))
}

// Answer is the outcome of a knock in one address family.
type Answer struct {
	Verdict Verdict
	Route   Route
	Gateway netip.Addr   // the address that answered, or else the route's first
	Receipt *spa.Receipt // nil unless one came that matches the command
	// Offset is how far the gateway's clock is at least ahead of this one, by the receipt. It is zero if the receipt's
	// stamp lies between the first packet and the receipt's arrival.
	Offset time.Duration
	Tries  int   // packets sent
	Err    error // why the verdict is Silent or Over

	conn net.Conn      // that the port accepted, if Dial wants it
	took time.Duration // from the packet that the receipt answers to the receipt
}

// Translated returns the address that the gateway let in and true if connections from this machine certainly come from
// another one: this machine's address is globally routable and different, or of the other family. Behind an ordinary
// NAT, where it is private, this is unknown.
func (a Answer) Translated() (netip.Addr, bool) {
	if a.Receipt == nil || a.Receipt.LetIn.IsValid() {
		return netip.Addr{}, false
	}
	in := a.Receipt.Source
	if !in.IsValid() || !a.Route.Own.IsValid() || in == a.Route.Own {
		return netip.Addr{}, false
	}
	return in, in.Is4() != a.Route.Own.Is4() || Routable(a.Route.Own)
}

// LetIn returns the network or address that the gateway let in, or the zero Prefix if no receipt says so.
func (a Answer) LetIn() netip.Prefix {
	switch {
	case a.Receipt == nil || !a.Receipt.Source.IsValid():
		return netip.Prefix{}
	case a.Receipt.LetIn.IsValid():
		return a.Receipt.LetIn
	}
	return netip.PrefixFrom(a.Receipt.Source, a.Receipt.Source.BitLen())
}

// Until returns when the grant of the i-th service ends, by this machine's clock. It is zero if no receipt says so.
func (a Answer) Until(i int) time.Time {
	if a.Receipt == nil || i >= len(a.Receipt.Services) {
		return time.Time{}
	}
	return a.Receipt.Time.Add(a.Receipt.Services[i].For - a.Offset).Local()
}

// Prepare looks up the gateway's addresses, chooses the source to state, and checks that the request fits a packet. It
// sends nothing to the gateway.
func Prepare(ctx context.Context, p *keys.Profile, c Command) (*Plan, error) {
	return prepare(ctx, p, c, system{})
}
