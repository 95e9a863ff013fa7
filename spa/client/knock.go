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

// maxDatagram is more than any UDP payload: a longer datagram than the buffer would
// be an error on some systems, and errors are answered with a pause.
const maxDatagram = 64 << 10

// errorPause keeps a socket that only returns errors from taking the processor.
const errorPause = 5 * time.Millisecond

// Knock sends the command and yields the answer of each route as it comes: at the
// latest when the time allowed is over, and a second after another route was
// answered. If ctx ends or the loop is left, nothing more is sent or yielded.
func (p *Plan) Knock(ctx context.Context) iter.Seq[Answer] {
	return func(yield func(Answer) bool) {
		limited, cancel := context.WithTimeout(ctx, p.Command.Timeout)
		answers := make(chan Answer, len(p.Routes))
		var routes sync.WaitGroup
		defer discard(answers)
		defer routes.Wait()
		defer cancel()
		for _, r := range p.Routes {
			routes.Go(func() { answers <- p.knock(limited, r) })
		}
		for range p.Routes {
			a := <-answers
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

// discard closes the connections of the answers that nobody takes.
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

// knock is one route's packets, from the first to the answer.
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
	k := &knocking{plan: p, route: r, conn: conn, began: time.Now(), at: schedule(p.Command.Timeout)}
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
	at      []time.Duration // when to send, from began
	packets [][]byte        // sent, the newest last
	err     error           // why the last packet could not be sent
}

// run sends packets until a receipt comes or the time is over.
func (k *knocking) run(ctx context.Context) Answer {
	for try := range k.at {
		if err := k.send(try); err != nil {
			return k.silent(err)
		}
		next := k.began.Add(k.plan.Command.Timeout)
		if try+1 < len(k.at) {
			next = k.began.Add(k.at[try+1])
		}
		if receipt, from, ok := k.await(ctx, next); ok {
			return k.answer(receipt, from)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return k.silent(nil)
}

// target is where the i-th packet goes.
func (k *knocking) target(try int) netip.AddrPort { return k.route.To[try%len(k.route.To)] }

// send seals a new packet and sends it. That the system could not send it is noted
// and no reason to give up: the next may find the network there again.
func (k *knocking) send(try int) error {
	packet, err := spa.Seal(k.plan.request(k.route), k.plan.sender)
	if err != nil {
		return fmt.Errorf("sealing the request: %w", err)
	}
	k.packets = append(k.packets, packet)
	_, k.err = k.conn.WriteTo(packet, net.UDPAddrFromAddrPort(k.target(try)))
	return nil
}

// await reads until a receipt of one of the packets comes, and returns which packet
// it answers. It returns false at the deadline or when the socket is closed.
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
		if err != nil { // an ICMP error, as some systems tell it: anyone can forge those
			pause(ctx, errorPause)
			continue
		}
		if receipt, try, ok := k.open(buf[:n]); ok {
			return receipt, try, true
		}
	}
}

// open tries a datagram as the receipt of each packet, the newest first.
func (k *knocking) open(datagram []byte) (spa.Receipt, int, bool) {
	for try := len(k.packets) - 1; try >= 0; try-- {
		receipt, err := spa.OpenReceipt(datagram, k.packets[try], k.plan.sender)
		if err == nil {
			return receipt, try, true
		}
	}
	return spa.Receipt{}, 0, false
}

// answer is what a receipt says.
func (k *knocking) answer(receipt spa.Receipt, try int) Answer {
	a := Answer{Route: k.route, Gateway: k.target(try).Addr(), Receipt: &receipt,
		Offset: offset(receipt.Time, k.began, time.Now()), Tries: len(k.packets)}
	if !k.plan.Command.matches(receipt) {
		a.Receipt, a.Err = nil, ErrMismatch // nobody shall read it by the command's services
		return a
	}
	switch receipt.Status {
	case spa.Granted:
		a.Verdict = Opened
	case spa.Closed:
		a.Verdict = Closed
	default:
		a.Verdict = Refused
	}
	return a
}

// matches reports whether a receipt can be the outcome of the command: services are told
// by their place in it alone. A close may be answered without telling any.
func (c Command) matches(r spa.Receipt) bool {
	switch n := len(r.Services); r.Status {
	case spa.Granted:
		return c.Type == spa.TypeOpen && n == len(c.Services)
	case spa.Closed:
		return c.Type == spa.TypeClose && (n == 0 || n == len(c.Services))
	}
	return true
}

// silent is the answer where none came. An error of its own, or that nothing could
// be sent, says more than that.
func (k *knocking) silent(err error) Answer {
	if err == nil && k.err != nil && !errors.Is(k.err, net.ErrClosed) {
		err = fmt.Errorf("sending to %v: %w", k.target(len(k.packets)-1), k.err)
	}
	if err == nil {
		err = ErrNoAnswer
	}
	return Answer{Route: k.route, Gateway: k.route.To[0].Addr(), Tries: len(k.packets), Err: err}
}

// offset is how far a clock that stamped a receipt is ahead of ours, as far as it is
// proved. The receipt was made between the first packet and its arrival; its stamp
// may be as old as the first packet, since a retry is told the first outcome again.
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
