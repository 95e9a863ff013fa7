package client

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"sallyport/spa"
)

// attemptDelay is the head start of the family granted first: the Connection Attempt Delay of RFC 8305, section 5.
const attemptDelay = 250 * time.Millisecond

// Dial knocks and connects to a TCP port of the command's one service as soon as the gateway has granted it, in the
// family that was granted. If both were, the one granted first has a head start of 250 ms (RFC 8305). Port 0 means the
// service's only TCP port, by the receipt.
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
		}
	}
	conn, err := r.winner()
	if conn == nil && ctx.Err() != nil {
		return nil, answers, ctx.Err()
	}
	if r.entered > 0 {
		return conn, answers, err
	}
	if conn := p.lastTry(ctx, answers); conn != nil {
		return conn, answers, nil
	}
	if ctx.Err() != nil {
		return nil, answers, ctx.Err()
	}
	return nil, answers, p.failure(answers)
}

// lastTry connects once if no answer came.
func (p *Plan) lastTry(ctx context.Context, answers []Answer) net.Conn {
	port, err := p.portOf(Answer{})
	if len(p.Ports(p.Command.Services[0])) == 0 && p.port != 0 {
		port, err = p.port, nil // the profile does not know the service
	}
	if err != nil {
		return nil
	}
	return p.once(ctx, answers, []uint16{port})
}

// race is the attempts to connect, one for each granted family.
type race struct {
	plan     *Plan
	ctx      context.Context // of the attempts
	cancel   context.CancelFunc
	knocking context.Context // ends when a connection is made
	stop     context.CancelFunc
	runners  sync.WaitGroup
	results  chan attempt
	entered  int
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
	return r
}

// enter starts the attempt for an answer, at once or when its turn comes.
func (r *race) enter(a Answer) {
	before, failed := r.before, make(chan struct{})
	r.before = failed
	r.entered++
	r.runners.Go(func() {
		r.waitTurn(before)
		conn, err := r.plan.connect(r.ctx, a)
		if err != nil {
			close(failed)
		} else {
			r.stop()
		}
		r.results <- attempt{conn, err}
	})
}

// waitTurn returns when the previous attempt has failed or had its head start.
func (r *race) waitTurn(before <-chan struct{}) {
	if before == nil {
		return
	}
	timer := time.NewTimer(attemptDelay)
	defer timer.Stop()
	select {
	case <-before:
	case <-timer.C:
	case <-r.ctx.Done():
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
	close(r.results)
	for a := range r.results {
		if a.conn != nil {
			a.conn.Close()
		}
	}
}
