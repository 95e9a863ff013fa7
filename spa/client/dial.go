package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"sallyport/spa"
)

// attemptDelay is the head start of the family granted first: the Connection Attempt Delay of RFC 8305, section 5.
const attemptDelay = 250 * time.Millisecond

// Dial knocks and connects to a TCP port of the command's one service, in the family that was granted. If both were,
// the one granted first has a head start of 250 ms (RFC 8305). In the first family, the connection is begun beside the
// knock if the profile knows the port. Port 0 means the service's only TCP port, by the receipt.
//
// If the gateway sends no receipts, Dial tries the port until it accepts and returns that connection. If receipts
// should come but none did, it tries the port once, since it may be open anyway. Then there is a connection although no
// answer is Opened.
//
// Dial returns the answers that arrived before the connection was made, even with an error. The error wraps
// [ErrNoAnswer] or is a [*RefusedError] if nothing was granted, and a [*PortError] if the port was not granted.
func (p *Plan) Dial(ctx context.Context, port uint16) (net.Conn, []Answer, error) {
	if p.Command.Type != spa.TypeOpen || len(p.Command.Services) != 1 {
		return nil, nil, &CommandError{errors.New("a connection needs one service to open")}
	}
	p.port, p.keep = port, true
	r := newRace(ctx, p)
	defer r.end()
	var answers []Answer
	for answer := range p.Knock(r.knocking) {
		answers = append(answers, answer)
		if answer.Verdict == Opened {
			r.enter(answer)
		} else if !errors.Is(answer.Err, ErrNoAnswer) {
			r.leave(answer)
		}
	}
	conn, err := r.winner()
	if conn == nil && ctx.Err() != nil {
		return nil, answers, ctx.Err()
	}
	if r.entered > 0 {
		return conn, answers, err
	}
	if conn := r.lastTry(ctx, answers); conn != nil {
		return conn, answers, nil
	}
	if ctx.Err() != nil {
		return nil, answers, ctx.Err()
	}
	return nil, answers, p.failure(answers)
}

// lastTry connects once if no answer came, unless the connection beside the knock was made: if the grant is for one
// connection, that one has taken it.
func (r *race) lastTry(ctx context.Context, answers []Answer) net.Conn {
	port, err := r.plan.knownPort()
	if err != nil || !r.plan.unanswered(answers) {
		return nil
	}
	if r.early != nil {
		if conn := r.early.take(); conn != nil {
			return conn
		}
	}
	return r.plan.once(ctx, answers, []uint16{port})
}

// race is the attempts to connect: one for each granted family, and the one that is begun beside the knock.
type race struct {
	plan     *Plan
	ctx      context.Context // of the attempts
	cancel   context.CancelFunc
	knocking context.Context // ends when a connection is made
	stop     context.CancelFunc
	runners  sync.WaitGroup
	results  chan attempt
	entered  int
	early    *early        // nil: there is none
	before   chan struct{} // closed when the previous attempt has failed; nil: there was none
}

type attempt struct {
	conn net.Conn
	err  error
}

func newRace(ctx context.Context, p *Plan) *race {
	r := &race{plan: p, results: make(chan attempt, len(p.Routes))}
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.knocking, r.stop = context.WithCancel(ctx)
	port, _ := p.knownPort()
	if r.early = p.newEarly(r.ctx, port); r.early != nil {
		p.sent = r.begin
	}
	return r
}

// begin begins the early connection if the knock that was sent is that of its route.
func (r *race) begin(sent Route) {
	if sent.ID == r.early.route.ID {
		r.runners.Go(func() { r.early.run(r.plan.net) })
	}
}

// leave ends the early connection if the answer is for its route: nothing is granted.
func (r *race) leave(a Answer) {
	if r.early != nil && a.Route.ID == r.early.route.ID {
		r.early.drop()
	}
}

// enter starts the attempt for an answer, at once or when its turn comes.
func (r *race) enter(a Answer) {
	before, failed := r.before, make(chan struct{})
	r.before = failed
	r.entered++
	r.runners.Go(func() {
		conn, err := r.connect(a, before)
		if err != nil {
			close(failed)
		} else {
			r.stop()
		}
		r.results <- attempt{conn, err}
	})
}

// connect takes the early connection, or connects in its turn.
func (r *race) connect(a Answer, before <-chan struct{}) (net.Conn, error) {
	e := r.early
	if e == nil || !r.plan.leadsTo(a, e) {
		r.waitTurn(r.ctx, before)
		return r.plan.connect(r.ctx, a)
	}
	e.await(r.ctx)
	if conn := e.take(); conn != nil {
		return conn, nil
	}
	if !e.pending() { // refused: the SYN came before the grant, or nothing listens
		r.waitTurn(r.ctx, before)
		return r.plan.connect(r.ctx, a)
	}
	return e.beside(r.ctx, a.once(), func(ctx context.Context) (net.Conn, error) {
		r.waitTurn(ctx, before)
		return r.plan.connect(ctx, a)
	})
}

// leadsTo reports whether the early connection is to where the answer leads.
func (p *Plan) leadsTo(a Answer, e *early) bool {
	port, err := p.portOf(a)
	return err == nil && a.conn == nil && a.Route.ID == e.route.ID && e.to == netip.AddrPortFrom(a.Gateway, port)
}

// waitTurn returns when the previous attempt has failed or had its head start.
func (r *race) waitTurn(ctx context.Context, before <-chan struct{}) {
	if before == nil {
		return
	}
	timer := time.NewTimer(attemptDelay)
	defer timer.Stop()
	select {
	case <-before:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// winner waits for the first connection. If none succeeds it returns all errors.
func (r *race) winner() (net.Conn, error) {
	var errs error
	for range r.entered {
		a := <-r.results
		if a.err == nil {
			return a.conn, nil
		}
		errs = errors.Join(errs, a.err)
	}
	return nil, errs
}

// end stops the remaining attempts and closes unused connections.
func (r *race) end() {
	r.stop()
	r.cancel()
	r.runners.Wait()
	if r.early != nil {
		r.early.drop()
	}
	close(r.results)
	for a := range r.results {
		if a.conn != nil {
			a.conn.Close()
		}
	}
}
