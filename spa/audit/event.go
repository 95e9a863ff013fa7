// Package audit records what was decided: one JSON line for every spent request, and counters for
// everything else.
//
// The split is a defence. A line costs a disk write, so only a packet that its owner could send,
// once, may cause one: whoever floods the gateway with noise, or with copies of a packet he has
// seen, moves counters and nothing more (a server that logs a line for a bad packet can be filled
// up by anybody). Counters of packets that did authenticate are kept a client and summarised at
// most once a second.
package audit

import (
	"encoding/hex"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
)

// Verdict is where a packet's path ended.
type Verdict uint8

const (
	// Unopened: the packet did not authenticate, or was malformed or stale. Not spent, not answered.
	Unopened Verdict = iota + 1
	// Elsewhere: it authenticates, and came from an address that it may not come from. Not spent, not answered.
	Elsewhere
	// Unspent: it authenticates, and the replay memory does not admit it. Not answered.
	Unspent
	// Denied: spent, refused by policy, answered.
	Denied
	// Failed: spent, allowed, and the firewall could not do it. Answered.
	Failed
	// Repeated: spent, another try of a command that was decided before: answered as before, nothing done.
	Repeated
	// Granted: spent, and the ports are open.
	Granted
	// Closed: spent, and the client's own grants have ended.
	Closed
)

var verdicts = [...]string{
	0: "invalid", Unopened: "unopened", Elsewhere: "elsewhere", Unspent: "unspent", Denied: "denied",
	Failed: "failed", Repeated: "repeated", Granted: "granted", Closed: "closed",
}

// String returns the verdict as it stands in the audit log.
func (v Verdict) String() string {
	if int(v) >= len(verdicts) {
		return verdicts[0]
	}
	return verdicts[v]
}

// Spent reports whether a packet with this verdict was spent: only these are recorded singly and answered.
func (v Verdict) Spent() bool { return v >= Denied }

// Event is what became of one packet.
type Event struct {
	Time    time.Time
	Verdict Verdict
	Err     error          // why; nil for Repeated, Granted and Closed
	From    netip.AddrPort // as observed
	Client  string         // empty unless the packet authenticated
	Knock   *spa.Knock     // what it says; nil unless it was opened
	Receipt spa.Receipt    // the answer; zero unless the packet was spent, or came too early and its sender is told
	Copied  bool           // it came from an address that cannot be its owner's
}

// Of returns e with what an opened packet says of itself.
func (e Event) Of(k *spa.Knock) Event {
	e.Client, e.Knock = k.Client.Name, k
	return e
}

// Answer returns e with its receipt, as of the event's time and for where the packet came from.
func (e Event) Answer(r spa.Receipt) Event {
	r.Time, r.Source = e.Time, e.From.Addr()
	e.Receipt = r
	return e
}

// As returns e with its verdict, and the reason for it. The client of a packet that authenticated
// and was refused all the same travels in the error.
func (e Event) As(v Verdict, err error) Event {
	e.Verdict, e.Err = v, err
	if refused, ok := errors.AsType[*spa.Refused](err); ok && refused.Client != nil {
		e.Client = refused.Client.Name
	}
	return e
}

// attrs returns a spent request's event as it stands in the audit log. No key, nonce or packet is in it.
func (e Event) attrs() []slog.Attr {
	request := &e.Knock.Request
	attrs := []slog.Attr{
		slog.String("verdict", e.Verdict.String()),
		slog.String("command", request.Type.String()),
		slog.String("client", e.Client),
		slog.String("key", e.Knock.KeyID.String()),
		slog.String("from", e.From.String()),
		slog.Any("services", serviceNames(request.Services)),
		slog.String("request", hex.EncodeToString(request.ID[:])),
		slog.Time("stamp", request.Time),
	}
	if e.Receipt.Status == spa.Granted {
		attrs = append(attrs, slog.Any("until", untils(e.Receipt)))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("reason", e.Err.Error()))
	}
	return attrs
}

func serviceNames(services []service.Service) []string {
	names := make([]string, len(services))
	for i, s := range services {
		names[i] = s.String()
	}
	return names
}

// untils returns the end of each granted service, in the order of the request.
func untils(r spa.Receipt) []time.Time {
	ends := make([]time.Time, len(r.Services))
	for i, s := range r.Services {
		ends[i] = r.Time.Add(s.For)
	}
	return ends
}

// Reason returns why, without what is particular to the packet: there are as many reasons as the
// program knows. It is empty where there is none to give.
func (e Event) Reason() string {
	if e.Err == nil {
		return ""
	}
	return reason(e.Err)
}
