// Package audit records what was decided: one JSON line for every spent request, and counters for everything else.
//
// The split is a defence. A line costs a disk write, so only a packet that its owner could send, once, may cause one.
// A flood of noise, or of copies of a packet, only moves counters; a server that logs a line for each bad packet can
// be filled up by anyone. Packets that authenticated but were refused are counted for each client and summarised at
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

// Verdict is how a packet ended.
type Verdict uint8

const (
	// Unopened: the packet did not authenticate, or it was malformed or stale, or its key revoked or replaced. Not spent,
	// not answered.
	Unopened Verdict = iota + 1
	// Elsewhere: it authenticates, but came from an address that it must not come from. Not spent, not answered.
	Elsewhere
	// Unspent: it authenticates, but the replay memory does not admit it: a copy, one too many, one from before a reboot,
	// or the journal cannot be used. Not answered, except as Server.tooEarly describes.
	Unspent
	// Rechecked: a browser sent a packet that was decided again, as its connectivity checks do. Answered as before, not
	// recorded.
	Rechecked
	// Pending: spent at this gateway, and the other gateways of its site must agree first. Not recorded, not answered:
	// another event says what becomes of it.
	Pending
	// Denied: spent, refused by policy, answered.
	Denied
	// Failed: spent and allowed, but the firewall could not do it. Answered.
	Failed
	// Repeated: spent, a retry of a command that was already decided. Answered as before, nothing is done.
	Repeated
	// Granted: spent, and the ports are open.
	Granted
	// Closed: spent, and the client's own grants have ended.
	Closed
)

var verdicts = [...]string{
	0: "invalid", Unopened: "unopened", Elsewhere: "elsewhere", Unspent: "unspent", Rechecked: "rechecked",
	Pending: "pending", Denied: "denied",
	Failed: "failed", Repeated: "repeated", Granted: "granted", Closed: "closed",
}

// String returns the verdict as it appears in the audit log.
func (v Verdict) String() string {
	if int(v) >= len(verdicts) {
		return verdicts[0]
	}
	return verdicts[v]
}

// Spent reports whether a packet with this verdict was spent: only these are recorded one by one. They are answered.
func (v Verdict) Spent() bool { return v >= Denied }

// level returns how much the verdict matters, for the journal.
func (v Verdict) level() slog.Level {
	switch v {
	case Failed:
		return slog.LevelError
	case Denied:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// Event is what became of one packet.
type Event struct {
	Time    time.Time
	Verdict Verdict
	Err     error          // why; nil for Rechecked, Repeated, Granted and Closed
	From    netip.AddrPort // as observed
	Client  string         // empty unless the packet authenticated
	Knock   *spa.Knock     // what it says; nil unless it was opened
	Receipt spa.Receipt    // the answer; zero unless the packet was spent, or came too early and is answered
	Copied  bool           // it came from an address that cannot be its owner's
	Fault   bool           // Err is no refusal: the journal cannot be used
}

// Of returns e with the contents of an opened packet.
func (e Event) Of(k *spa.Knock) Event {
	e.Client, e.Knock = k.Client.Name, k
	return e
}

// Answer returns e with its receipt, dated at the event's time and addressed to the packet's sender.
func (e Event) Answer(r spa.Receipt) Event {
	r.Time, r.Source = e.Time, e.From.Addr()
	if r.LetIn.IsValid() {
		r.Source = r.LetIn.Addr()
	}
	e.Receipt = r
	return e
}

// As returns e with its verdict and the reason. If the packet authenticated and was refused, the error carries its
// client.
func (e Event) As(v Verdict, err error) Event {
	e.Verdict, e.Err = v, err
	if refused, ok := errors.AsType[*spa.Refused](err); ok && refused.Client != nil {
		e.Client = refused.Client.Name
	}
	return e
}

// attrs returns a spent request's event as it appears in the audit log. It contains no key, nonce or packet.
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
	if request.LetIn.IsValid() {
		attrs = append(attrs, slog.String("let_in", service.NetworkText(request.LetIn)))
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

// Reason returns the reason without details of the packet, so that the number of reasons is limited. It is empty if
// there is none.
func (e Event) Reason() string {
	if e.Err == nil {
		return ""
	}
	return reason(e.Err)
}
