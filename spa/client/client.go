// Package client knocks: it turns a host profile and a command into packets,
// sends them until the gateway's receipt comes, and says what the receipt says.
//
// A program that wants to reach what is behind a gateway needs a [Dialer], whose DialContext
// knocks first and takes the place of a net.Dialer's:
//
//	door := &client.Dialer{Profile: profile} // keys.ReadProfile reads one that spa-client import wrote
//	conn, err := door.DialContext(ctx, "tcp", "gw:22")
//
// [Open] and [Close] do one command, [Keep] keeps services open, and a [Plan] has what
// spa-client is made of: the answer of each address family as it comes.
//
//	plan, err := client.Prepare(ctx, profile, client.Command{Type: spa.TypeOpen, Services: services})
//	…
//	for answer := range plan.Knock(ctx) {
//		fmt.Println(answer.Verdict, answer.Until(0))
//	}
//
// # Addresses
//
// A gateway's name may have IPv4 and IPv6 addresses. Each family is knocked on by
// itself and at the same time, because a grant is for one source address, and the
// caller has one of each. Within a family the addresses and the knock ports are
// tried in turn, a packet each.
//
// # Packets
//
// All packets of a command to one family carry one request id, and each its own
// nonce and stamp, so the gateway acts once however many of them arrive. There are
// at most 16, the first retry after about 150 ms, the others spread ever wider over
// the time allowed. Those sent more than 25 s after the first tell when that was. A gateway
// that has just started may say from when on it takes packets: the next then go at that time.
//
// Nothing that does not authenticate is believed: a datagram that is no receipt of
// one of these packets and an ICMP error are both as if they had not come, since
// anyone can forge them. Where a receipt comes from does not matter, only that the
// gateway made it.
//
// # Source
//
// A stated source address must equal the one that the gateway sees, or the gateway
// stays silent. Where the statement does not hold there is no second attempt
// without it: an attacker in the path would force just that, and take the grant. A STUN server
// is asked only where one is named; its answer is not authenticated, so who can change it on its way
// can have his own address stated.
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

// DefaultTimeout is how long an answer is waited for if nothing else is said.
const DefaultTimeout = 10 * time.Second

// Errors of an Answer whose Verdict is Silent, and of WaitOpen.
var (
	// ErrNoAnswer is returned when packets were sent and no receipt came, or, where
	// the gateway sends none, the port did not accept. A gateway is silent on purpose
	// about everything that it does not want to answer, so the cause is not known.
	ErrNoAnswer = errors.New("no answer")
	// ErrOver is why an Answer is Over.
	ErrOver = errors.New("granted, and over before the answer came")
	// ErrMismatch is returned when the gateway's receipt is real and does not match the
	// command: another number of services, or an open answered as a close. What it did
	// is not known, and nothing else will come.
	ErrMismatch = errors.New("the gateway's receipt does not match the request: a fault of the gateway")
	// ErrNoTCP is returned by WaitOpen when no TCP port was granted: nothing can be tried.
	ErrNoTCP = errors.New("no TCP port to wait for")
)

// CommandError is returned by Prepare for a command that cannot be put into a packet,
// or not be carried out on any network: what was asked for has to change.
type CommandError struct{ Err error }

// Error is the wrapped error's text.
func (e *CommandError) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *CommandError) Unwrap() error { return e.Err }

// Command is what a gateway is asked to do.
type Command struct {
	Type     spa.Type
	Services []service.Service
	For      time.Duration // zero: the service's own; none for a close
	Source   Source        // zero: the profile's
	Timeout  time.Duration // for resolving, and again for the answer; zero: DefaultTimeout
	// Patience is how much longer than Timeout it may take until a gateway that has just
	// started takes knocks, as it says itself. The answer may then take Timeout once more.
	Patience time.Duration
	// Waiting is called where such a gateway is waited for, by each family. Nil: nobody is told.
	Waiting func(time.Duration)
}

// Plan is a command that is ready to be sent: everything is looked up, and it is
// known to fit a packet. A Plan is good for one Knock.
type Plan struct {
	Profile *keys.Profile
	Command Command // with its defaults filled in
	Routes  []Route // one for each address family, IPv4 first
	sender  spa.Sender
	net     network
	room    bool // in a packet, to tell when the command began

	gateways []netip.AddrPort // all addresses, also those that there was no way to
	port     uint16           // to connect to; 0: the service's only one
	hosts    []netip.Addr     // to connect to; none: the gateway that answered
	keep     bool             // the connection that a probe made is the one that is wanted
}

// Route is how one address family of the gateway is knocked on.
type Route struct {
	ID     spa.RequestID
	To     []netip.AddrPort // tried in turn
	Own    netip.Addr       // this machine's address on the way there, before any translation
	Source netip.Addr       // stated; the zero Addr asks for the address that the gateway sees
	Local  netip.Addr       // the address that packets are sent from; the zero Addr leaves it to the system
}

// Family is "IPv4" or "IPv6".
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
	Silent  Verdict = iota // no answer that can be used: Answer.Err says more
	Opened                 // granted, by a receipt, or without one where the ports accept
	Closed                 // closed, by a receipt
	Refused                // refused by the gateway: the receipt says why
	Sent                   // sent to a gateway that sends no receipts; nothing can confirm it
	Over                   // granted, and a service's time was over when the receipt came
)

// String returns the verdict as a program may read it.
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

// Answer is what came of knocking on one address family.
type Answer struct {
	Verdict Verdict
	Route   Route
	Gateway netip.Addr   // the address that answered; the route's first where none did
	Receipt *spa.Receipt // nil where none came that matches the command
	// Offset is how far the gateway's clock is ahead of this one, as far as the
	// receipt proves it: zero while its stamp may lie between the first packet and
	// the receipt's arrival.
	Offset time.Duration
	Tries  int   // packets sent
	Err    error // why it is Silent, or Over

	conn net.Conn // that the port accepted, where Dial wants it
}

// Translated returns the address that the gateway let in and true where that is certainly not
// the one that this machine's connections to it leave from: that one is globally routable
// and another, or of the other family. Behind an ordinary NAT, where
// the own address is a private one, it is not known.
func (a Answer) Translated() (netip.Addr, bool) {
	if a.Receipt == nil || !a.Receipt.Source.IsValid() || !a.Route.Own.IsValid() || a.Receipt.Source == a.Route.Own {
		return netip.Addr{}, false
	}
	in := a.Receipt.Source
	return in, in.Is4() != a.Route.Own.Is4() || Routable(a.Route.Own)
}

// Until is when the grant of the i-th service ends, by this machine's clock. It is
// zero where no receipt tells it.
func (a Answer) Until(i int) time.Time {
	if a.Receipt == nil || i >= len(a.Receipt.Services) {
		return time.Time{}
	}
	return a.Receipt.Time.Add(a.Receipt.Services[i].For - a.Offset).Local()
}

// Prepare looks up the gateway's addresses, chooses what to state as the source,
// and checks that the request fits a packet. It sends nothing to the gateway.
func Prepare(ctx context.Context, p *keys.Profile, c Command) (*Plan, error) {
	return prepare(ctx, p, c, system{})
}
