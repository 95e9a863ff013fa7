package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"sallyport/spa"
)

const (
	// behind is how long after the knock the SYN follows. The gateway needs some tenths of a millisecond to open the
	// port, and a SYN that comes earlier costs a round trip.
	behind = 2 * time.Millisecond
	// mostJitter bounds how much later than the receipt the answer to the SYN may be on a long path.
	mostJitter = 25 * time.Millisecond
)

// early is a connection that is begun beside the knock, before the gateway has granted it, and used only if a receipt
// grants it. If its SYN comes before the grant, the guard drops it, and the system sends it again only after a second:
// another connection is then begun as soon as the receipt is there.
type early struct {
	route  Route
	to     netip.AddrPort
	ctx    context.Context
	cancel context.CancelFunc
	state  atomic.Int32
	sent   time.Time     // when the SYN was; valid once begun
	done   chan struct{} // closed when made is valid
	made   attempt
	taken  bool // its taker closes the connection
	probe  bool // close it as soon as it is made
}

// The states of an early connection.
const (
	planned int32 = iota
	begun         // a SYN may have been sent
	stopped       // none was sent, and none will be
)

var errStopped = errors.New("stopped before it was begun")

// newEarly returns the connection to a port to begin beside the first route's knock, or nil if there should be none:
// without receipts the port is probed, and a host other than the gateway gets no packet that the gateway has not
// granted.
func (p *Plan) newEarly(ctx context.Context, port uint16) *early {
	if port == 0 || !p.Profile.Receipts || len(p.hosts) > 0 {
		return nil
	}
	r := p.Routes[0]
	e := &early{route: r, to: netip.AddrPortFrom(r.To[0].Addr(), port), done: make(chan struct{})}
	e.ctx, e.cancel = context.WithTimeout(ctx, p.Command.Timeout)
	return e
}

// knownPort returns the port to connect to, as far as it is known without a receipt.
func (p *Plan) knownPort() (uint16, error) {
	if p.port != 0 && len(p.Ports(p.Command.Services[0])) == 0 {
		return p.port, nil // the profile does not know the service
	}
	return p.portOf(Answer{})
}

// run begins the connection a moment after the knock, unless it is stopped by then.
func (e *early) run(n network) {
	defer close(e.done)
	pause(e.ctx, behind)
	e.sent = time.Now()
	if e.ctx.Err() != nil || !e.state.CompareAndSwap(planned, begun) {
		e.made.err = errStopped
		return
	}
	e.made.conn, e.made.err = n.Dial(e.ctx, e.route.Local, e.to)
	if e.probe && e.made.conn != nil {
		e.made.conn.Close()
		e.made.conn = nil
	}
}

// accepted reports whether the port has accepted the connection.
func (e *early) accepted() bool { return e.ended() && e.made.err == nil }

func (e *early) ended() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// stop keeps the connection from being begun, and reports whether it was in time.
func (e *early) stop() bool {
	if e.state.CompareAndSwap(planned, stopped) {
		e.cancel()
	}
	return e.state.Load() == stopped
}

// await waits until the connection must be made if the port was open for its SYN: as long after the receipt as the SYN
// was sent after the knock, give or take the jitter of the path. If no SYN was sent yet, none is.
func (e *early) await(ctx context.Context) {
	if e.stop() {
		return
	}
	timer := time.NewTimer(2*behind + min(mostJitter, time.Since(e.sent)/8))
	defer timer.Stop()
	select {
	case <-e.done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// pending reports whether a SYN was sent and it is still unknown whether the port accepts.
func (e *early) pending() bool { return !e.ended() && e.state.Load() == begun }

// take returns the connection if it is made.
func (e *early) take() net.Conn {
	if !e.ended() {
		return nil
	}
	e.taken = e.made.conn != nil
	return e.made.conn
}

// drop ends the connection, made or not, unless it was taken. A connection that is made at this very moment is closed
// by the call after run has returned.
func (e *early) drop() {
	e.stop()
	e.cancel()
	if e.taken {
		return
	}
	if conn := e.take(); conn != nil {
		conn.Close()
	}
}

// beside makes a second connection while the early one is pending, and returns the one that is made first. If the grant
// is for one connection, a failure of the second may only mean that the early one has taken it.
func (e *early) beside(ctx context.Context, once bool,
	connect func(context.Context) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	second := make(chan attempt, 1)
	go func() {
		conn, err := connect(ctx)
		second <- attempt{conn, err}
	}()
	var s attempt
	select {
	case <-e.done:
		if conn := e.take(); conn != nil {
			cancel()
			if s = <-second; s.conn != nil {
				s.conn.Close()
			}
			return conn, nil
		}
		s = <-second
	case s = <-second:
	}
	if s.err != nil && once {
		<-e.done
		if conn := e.take(); conn != nil {
			return conn, nil
		}
	}
	e.drop()
	return s.conn, s.err
}

// tryBeside has the port tried beside the first packet, if the command says so.
func (p *Plan) tryBeside(ctx context.Context) {
	c := &p.Command
	if !c.Beside || p.keep || c.Type != spa.TypeOpen || len(c.Services) != 1 || c.LetIn.IsValid() {
		return
	}
	port, _ := FirstTCP(p.Ports(c.Services[0]))
	if p.early = p.newEarly(ctx, port); p.early == nil {
		return
	}
	p.early.probe = true
	p.sent = func(r Route) {
		if r.ID == p.early.route.ID {
			go p.early.run(p.net)
		}
	}
}

// settle ends the attempt beside the first packet unless the answer opens the port for it.
func (p *Plan) settle(a Answer) {
	if p.early != nil && a.Route.ID == p.early.route.ID && (a.Verdict != Opened || a.once()) {
		p.early.drop()
	}
}

// acceptedBeside returns nil when the port has accepted the attempt beside the first packet, or another, which is made
// if that one does not succeed soon.
func (p *Plan) acceptedBeside(ctx context.Context, again func(context.Context) error) error {
	e := p.early
	e.await(ctx)
	if e.accepted() {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tried := make(chan error, 1)
	go func() { tried <- again(ctx) }()
	defer e.drop()
	select {
	case err := <-tried:
		return err
	case <-e.done:
	}
	if e.accepted() {
		cancel()
	}
	err := <-tried
	if e.accepted() {
		return nil
	}
	return err
}

// Spent reports whether an answer grants one connection only, and the attempt beside the first packet may have used it
// up: it takes another knock.
func (p *Plan) Spent(a Answer) bool {
	return a.once() && p.early != nil && a.Route.ID == p.early.route.ID && !p.early.stop()
}

// once reports whether a service that was granted admits one connection only.
func (a Answer) once() bool {
	return a.Receipt != nil && len(a.Receipt.Services) > 0 && a.Receipt.Services[0].Once
}
