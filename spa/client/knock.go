package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"sallyport/spa"
)

// maxDatagram is larger than any UDP payload: on some systems a datagram longer than the buffer is an error, which
// would cause a pause.
const maxDatagram = 64 << 10

// errorPause keeps a socket that returns only errors from using all of the processor.
const errorPause = 5 * time.Millisecond

// Knock sends the command and yields each route's answer as it arrives: at the latest when the time allowed is over,
// with the command's Patience, and a second after another route was answered. If ctx ends or the loop is left, Knock
// sends and yields nothing more.
//
// With a recovery key it knocks in one family, and in the other only if no answer came: each knock is a use.
func (p *Plan) Knock(ctx context.Context) iter.Seq[Answer] {
	if p.Profile.Recovery {
		return func(yield func(Answer) bool) { p.knockInTurn(ctx, yield) }
	}
	return func(yield func(Answer) bool) {
		p.tryBeside(ctx)
		knocking, cancel := context.WithCancel(ctx)
		answers := make(chan Answer, len(p.Routes))
		var routes sync.WaitGroup
		defer discard(answers)
		defer routes.Wait()
		defer cancel()
		for _, r := range p.Routes {
			routes.Go(func() { answers <- p.knock(knocking, r) })
		}
		for range p.Routes {
			a := <-answers
			p.settle(a)
			if ctx.Err() != nil {
				a.discard()
				return
			}
			if !yield(a) {
				return
			}
			if a.Verdict != Silent || errors.Is(a.Err, ErrMismatch) {
				patience := time.AfterFunc(grace, cancel)
				defer patience.Stop()
			}
		}
	}
}

// knockInTurn knocks on one route after the other, until one is answered, or may have been used without an answer.
func (p *Plan) knockInTurn(ctx context.Context, yield func(Answer) bool) {
	for _, r := range p.Routes {
		a := p.knock(ctx, r)
		if ctx.Err() != nil {
			a.discard()
			return
		}
		if !yield(a) || a.Verdict != Silent || !p.Profile.Receipts {
			return
		}
	}
}

// discard closes the connections of unused answers.
func discard(answers chan Answer) {
	close(answers)
	for a := range answers {
		a.discard()
	}
}

func (a Answer) discard() {
	if a.conn != nil {
		a.conn.Close()
	}
}

// knock sends one route's packets and returns the answer.
func (p *Plan) knock(ctx context.Context, r Route) Answer {
	local := r.Local
	if !local.IsValid() {
		local = netip.IPv6Unspecified()
		if r.To[0].Addr().Is4() {
			local = netip.IPv4Unspecified()
		}
	}
	silent := Answer{Route: r, Gateway: r.To[0].Addr()}
	conn, err := p.net.Listen(ctx, local)
	if err != nil {
		silent.Err = fmt.Errorf("opening a socket: %w", err)
		return silent
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // wakes the reader
	defer stop()
	k := p.begin(r, conn)
	if !p.Profile.Receipts {
		return k.blind(ctx)
	}
	return k.run(ctx)
}

// knocking is the state of one route's knock.
type knocking struct {
	plan    *Plan
	route   Route
	conn    net.PacketConn
	began   time.Time
	allowed time.Duration   // from began
	at      []time.Duration // when to send the next packets, from began
	packets [][]byte        // sent, the newest last
	sent    []time.Time     // when each was
	err     error           // why the last packet could not be sent
}

// begin plans a route's packets.
func (p *Plan) begin(r Route, conn net.PacketConn) *knocking {
	timeout := p.Command.Timeout
	at := schedule(timeout)
	if !p.room {
		at = schedule(min(timeout, untold))
	}
	return &knocking{plan: p, route: r, conn: conn, began: time.Now(), allowed: timeout, at: at}
}

// run sends packets until a receipt comes or the time is over.
func (k *knocking) run(ctx context.Context) Answer {
	for len(k.at) > 0 && ctx.Err() == nil {
		k.at = k.at[1:]
		if err := k.send(); err != nil {
			return k.silent(err)
		}
		receipt, from, ok := k.await(ctx, k.next())
		for ok && k.postpone(receipt) {
			receipt, from, ok = k.await(ctx, k.next())
		}
		if ok {
			return k.answer(receipt, from)
		}
	}
	return k.silent(nil)
}

// next returns when the next packet is due or the time is over.
func (k *knocking) next() time.Time {
	if len(k.at) == 0 {
		return k.began.Add(k.allowed)
	}
	return k.began.Add(k.at[0])
}

// postpone plans the next packets for the time at which the gateway accepts them, if a receipt says that they came too
// early and that time comes soon enough. They belong to the same request: if the gateway has accepted one after all, it
// does not act again. This machine's clock determines the time, since it stamps the packets.
func (k *knocking) postpone(r spa.Receipt) bool {
	if r.Status != spa.ReasonTooEarly {
		return false
	}
	wait := max(0, r.Again.Sub(time.Now().Round(0))+leastMargin)
	at := time.Since(k.began) + wait
	if at >= k.plan.Command.Timeout+k.plan.Command.Patience || !k.plan.room && at > untold {
		return false
	}
	if k.plan.Command.Patience > 0 {
		k.allowed = at + k.plan.Command.Timeout
	}
	k.at = schedule(k.allowed - at)
	for i := range k.at {
		k.at[i] += at
	}
	if k.plan.Command.Waiting != nil {
		k.plan.Command.Waiting(wait)
	}
	return true
}

// target returns where to send the i-th packet.
func (k *knocking) target(try int) netip.AddrPort { return k.route.To[try%len(k.route.To)] }

// send seals a new packet and sends it. If the system cannot send it, the error is recorded and the knock continues:
// the network may be back for the next packet.
func (k *knocking) send() error {
	request := k.plan.request(k.route, time.Now())
	if first := k.began.Round(0); request.Time.Round(0).Sub(first) > untold { // by the clock that stamps
		if !k.plan.room {
			return nil
		}
		request.First = first
	}
	packet, err := spa.Seal(request, k.plan.sender)
	if err != nil {
		return fmt.Errorf("sealing the request: %w", err)
	}
	_, k.err = k.conn.WriteTo(packet, net.UDPAddrFromAddrPort(k.target(len(k.packets))))
	k.packets, k.sent = append(k.packets, packet), append(k.sent, time.Now())
	if len(k.packets) == 1 && k.err == nil && k.plan.sent != nil {
		k.plan.sent(k.route)
	}
	return nil
}

// await reads until a receipt for one of the packets arrives, and returns which packet it answers. It returns false at
// the deadline or when the socket is closed.
func (k *knocking) await(ctx context.Context, deadline time.Time) (spa.Receipt, int, bool) {
	if err := k.conn.SetReadDeadline(deadline); err != nil {
		return spa.Receipt{}, 0, false
	}
	buf := make([]byte, maxDatagram)
	for {
		n, _, err := k.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return spa.Receipt{}, 0, false
		}
		if err != nil { // an ICMP error, as some systems report it: anyone can forge those
			pause(ctx, min(errorPause, time.Until(deadline)))
			if ctx.Err() != nil || !time.Now().Before(deadline) {
				return spa.Receipt{}, 0, false
			}
			continue
		}
		if receipt, try, ok := k.open(buf[:n]); ok {
			return receipt, try, true
		}
	}
}

// open tries a datagram as the receipt for each packet, the newest first.
func (k *knocking) open(datagram []byte) (spa.Receipt, int, bool) {
	for try := len(k.packets) - 1; try >= 0; try-- {
		receipt, err := spa.OpenReceipt(datagram, k.packets[try], k.plan.sender)
		if err == nil {
			return receipt, try, true
		}
	}
	return spa.Receipt{}, 0, false
}

// answer returns the answer that a receipt gives.
func (k *knocking) answer(receipt spa.Receipt, try int) Answer {
	now := time.Now()
	a := Answer{Route: k.route, Gateway: k.target(try).Addr(), Receipt: &receipt,
		Offset: offset(receipt.Time, k.began, now), Tries: len(k.packets), took: now.Sub(k.sent[try])}
	if !k.plan.Command.matches(receipt) {
		a.Receipt, a.Err = nil, ErrMismatch // it must not be read as the outcome of the command's services
		return a
	}
	switch receipt.Status {
	case spa.Granted:
		a.Verdict = Opened
		if a.over() {
			a.Verdict, a.Err = Over, errOver
		}
	case spa.Closed:
		a.Verdict = Closed
	default:
		a.Verdict = Refused
	}
	return a
}

// over reports whether the time of a granted service is over: the first answers were lost, and a later one repeats the
// first outcome.
func (a Answer) over() bool {
	for i, s := range a.Receipt.Services {
		if s.For == 0 || !a.Until(i).After(time.Now()) {
			return true
		}
	}
	return false
}

// matches reports whether a receipt can be the outcome of the command: it identifies services only by their position. A
// close may be answered without services.
func (c Command) matches(r spa.Receipt) bool {
	switch n := len(r.Services); r.Status {
	case spa.Granted:
		return c.Type == spa.TypeOpen && n == len(c.Services) && r.LetIn == c.LetIn
	case spa.Closed:
		return c.Type == spa.TypeClose && (n == 0 || n == len(c.Services))
	}
	return true
}

// silent returns the answer if no receipt came. An error of the socket, or that nothing could be sent, is more
// specific.
func (k *knocking) silent(err error) Answer {
	if err == nil && k.err != nil && !errors.Is(k.err, net.ErrClosed) {
		err = fmt.Errorf("sending to %v: %w", k.target(len(k.packets)-1), k.err)
	}
	if err == nil {
		err = ErrNoAnswer
	}
	return Answer{Route: k.route, Gateway: k.route.To[0].Addr(), Tries: len(k.packets), Err: err}
}

// offset returns how far at least the clock that stamped a receipt is ahead of ours. The receipt was made between the
// first packet and its arrival, but its stamp may be as old as the first packet, since a retry gets the first outcome
// again.
func offset(stamp, began, now time.Time) time.Duration {
	if stamp.Before(began) {
		return stamp.Sub(began)
	}
	if stamp.After(now) {
		return stamp.Sub(now)
	}
	return 0
}

// pause waits, or returns early when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
