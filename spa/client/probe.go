package client

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
)

const (
	fewTries   = 3                     // packets of a command that nothing can confirm
	firstProbe = 20 * time.Millisecond // the first attempt to connect may come before the grant and be dropped
	lastProbe  = 2 * time.Second       // longer than any round trip, and than a system waits to send a lost SYN again
)

// blind knocks on a gateway that sends no receipts. An open is done when the ports accept; a command that nothing can
// confirm is sent a few times.
func (k *knocking) blind(ctx context.Context) Answer {
	ctx, cancel := context.WithTimeout(ctx, k.allowed)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { k.conn.Close() })
	defer stop()
	ports := k.probePorts()
	if len(ports) == 0 {
		return k.unconfirmed(ctx)
	}
	probing, end := context.WithCancel(ctx)
	open := make(chan accepted, 1)
	finished := make(chan struct{})
	defer func() {
		end()
		<-finished
		k.leave(open)
	}()
	if err := k.send(); err != nil {
		close(finished)
		return k.silent(err)
	}
	go func() {
		defer close(finished)
		if a, err := k.plan.probe(probing, k.route.Local, k.probed(), ports, firstProbe); err == nil {
			open <- a
		}
	}()
	return k.until(ctx, open)
}

// until sends the other packets until a probe succeeds or the time is over.
func (k *knocking) until(ctx context.Context, open <-chan accepted) Answer {
	for try := 1; ; try++ {
		wait := k.plan.Command.Timeout
		if try < len(k.at) {
			wait = k.at[try]
		}
		timer := time.NewTimer(time.Until(k.began.Add(wait)))
		select {
		case a := <-open:
			timer.Stop()
			return k.confirmed(a)
		case <-ctx.Done():
			timer.Stop()
			return k.silent(nil)
		case <-timer.C:
		}
		if try >= len(k.at) {
			return k.silent(nil)
		}
		if err := k.send(); err != nil {
			return k.silent(err)
		}
	}
}

// confirmed returns the answer that a port gave by accepting.
func (k *knocking) confirmed(by accepted) Answer {
	a := Answer{Verdict: Opened, Route: k.route, Gateway: by.gateway, Tries: len(k.packets)}
	if k.plan.keep {
		a.conn = by.conn
		return a
	}
	by.conn.Close()
	return a
}

// leave closes a connection that came too late for an answer.
func (k *knocking) leave(open <-chan accepted) {
	select {
	case a := <-open:
		a.conn.Close()
	default:
	}
}

// unconfirmed sends a few packets, at least one to each address and port.
func (k *knocking) unconfirmed(ctx context.Context) Answer {
	for try := range min(max(fewTries, len(k.route.To)), len(k.at)) {
		pause(ctx, time.Until(k.began.Add(k.at[try])))
		if err := k.send(); err != nil {
			return k.silent(err)
		}
	}
	if k.err != nil { // even if ctx has ended by now: the socket is closed then
		return k.silent(nil)
	}
	return Answer{Verdict: Sent, Route: k.route, Gateway: k.route.To[0].Addr(), Tries: len(k.packets)}
}

// gateways returns the route's addresses, each once.
func (k *knocking) gateways() []netip.Addr {
	var out []netip.Addr
	for _, to := range k.route.To {
		if !slices.Contains(out, to.Addr()) {
			out = append(out, to.Addr())
		}
	}
	return out
}

// probed returns the addresses to try: those to connect to, if they differ from the gateway's.
func (k *knocking) probed() []netip.Addr {
	if len(k.plan.hosts) == 0 {
		return k.gateways()
	}
	return ofFamily(k.plan.hosts, k.route.To[0].Addr().Is4())
}

// ofFamily returns the addresses of one family.
func ofFamily(all []netip.Addr, is4 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		if a.Is4() == is4 {
			out = append(out, a)
		}
	}
	return out
}

// probePorts returns the TCP ports that accept once the command is done: the first of each service. There are none for
// a close, or if a service has none that the profile knows.
func (k *knocking) probePorts() []uint16 {
	if k.plan.Command.Type != spa.TypeOpen || len(k.probed()) == 0 {
		return nil
	}
	if k.plan.port != 0 {
		return []uint16{k.plan.port}
	}
	var ports []uint16
	for _, s := range k.plan.Command.Services {
		port, ok := FirstTCP(k.plan.Ports(s))
		if !ok {
			return nil
		}
		ports = append(ports, port)
	}
	return ports
}

// Ports returns a service's ports as far as the profile knows them.
func (p *Plan) Ports(s service.Service) []service.Ports { return p.Profile.Ports(s) }

// FirstTCP returns the first TCP port, and whether there is one.
func FirstTCP(all []service.Ports) (uint16, bool) {
	for _, ports := range all {
		if ports.Proto == service.TCP {
			return ports.Low, true
		}
	}
	return 0, false
}

// WaitOpen returns nil when the first TCP port of each service that an answer opened accepts connections, and ctx's
// error if it ends earlier. It does not try services that admit one connection only, and returns ErrOnce then. It
// returns ErrNoTCP if there is none to try.
func (p *Plan) WaitOpen(ctx context.Context, a Answer) error {
	if a.Receipt == nil {
		return nil // a probe has already found that they accept
	}
	var ports []uint16
	var untried error
	for _, granted := range a.Receipt.Services {
		if granted.Once {
			untried = ErrOnce
			continue
		}
		if port, ok := FirstTCP(granted.Ports); ok {
			ports = append(ports, port)
		}
	}
	if len(ports) == 0 {
		return cmp.Or(untried, ErrNoTCP)
	}
	probe := func(ctx context.Context) error {
		// The port is open: the first attempt may take the time of a round trip, and more.
		by, err := p.probe(ctx, a.Route.Local, []netip.Addr{a.Gateway}, ports, max(firstProbe, 2*a.took))
		if err == nil {
			by.conn.Close()
		}
		return err
	}
	if e := p.early; e != nil && e.route.ID == a.Route.ID && e.to == netip.AddrPortFrom(a.Gateway, ports[0]) {
		return p.acceptedBeside(ctx, probe)
	}
	return cmp.Or(probe(ctx), untried)
}

// Reachable reports, if no answer came from the gateway, whether the first TCP port of each of the command's services
// accepts a connection, by the profile: if only the receipts were lost, they are open. It tries them once.
func (p *Plan) Reachable(ctx context.Context, answers []Answer) bool {
	var ports []uint16
	for _, s := range p.Command.Services {
		port, ok := FirstTCP(p.Ports(s))
		if !ok {
			return false
		}
		ports = append(ports, port)
	}
	conn := p.once(ctx, answers, ports)
	if conn == nil {
		return false
	}
	conn.Close()
	return true
}

// unanswered reports whether no packet was answered although receipts should have come.
func (p *Plan) unanswered(answers []Answer) bool {
	return p.Profile.Receipts && len(answers) > 0 && !slices.ContainsFunc(answers,
		func(a Answer) bool { return !errors.Is(a.Err, ErrNoAnswer) })
}

// once tries ports on all of the gateway's addresses at the same time, if no packet was answered although receipts
// should have come. It returns a connection to the last port of the first address at which all accept, or nil.
func (p *Plan) once(ctx context.Context, answers []Answer, ports []uint16) net.Conn {
	if !p.unanswered(answers) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lastProbe)
	defer cancel()
	results := make(chan net.Conn)
	tried := 0
	for _, a := range answers {
		for _, host := range (&knocking{plan: p, route: a.Route}).probed() {
			tried++
			go func() { results <- p.all(ctx, a.Route.Local, host, ports) }()
		}
	}
	var first net.Conn
	for range tried {
		conn := <-results
		if conn != nil && first != nil {
			conn.Close()
			continue
		}
		if conn != nil {
			first = conn
			cancel()
		}
	}
	return first
}

// all connects to the ports of a host one after the other, and returns the last connection, or nil if one does not
// accept.
func (p *Plan) all(ctx context.Context, local, host netip.Addr, ports []uint16) net.Conn {
	var last net.Conn
	for _, port := range ports {
		if last != nil {
			last.Close()
		}
		var err error
		if last, err = p.net.Dial(ctx, local, netip.AddrPortFrom(host, port)); err != nil {
			return nil
		}
	}
	return last
}

// accepted is a connection that a probe made, and its address.
type accepted struct {
	conn    net.Conn
	gateway netip.Addr
}

// probe connects to the ports one after the other until each has accepted, and returns the connection to the last. The
// first attempt at each may take that long.
func (p *Plan) probe(ctx context.Context, local netip.Addr, gateways []netip.Addr, ports []uint16,
	first time.Duration) (accepted, error) {
	var last accepted
	for i, port := range ports {
		if i > 0 {
			last.conn.Close()
		}
		var err error
		if last, err = p.probePort(ctx, local, gateways, port, first); err != nil {
			return accepted{}, err
		}
	}
	return last, nil
}

// probePort tries a port at each address in turn. Each attempt may take twice as long as the one before: the system
// resends a dropped SYN only after a second, but a new attempt sends one at once. A refused attempt is retried too.
func (p *Plan) probePort(ctx context.Context, local netip.Addr, gateways []netip.Addr, port uint16,
	slice time.Duration) (accepted, error) {
	for try := 0; ctx.Err() == nil; try++ {
		gateway := gateways[try%len(gateways)]
		attempt, cancel := context.WithTimeout(ctx, slice)
		conn, err := p.net.Dial(attempt, local, netip.AddrPortFrom(gateway, port))
		if err == nil {
			cancel()
			return accepted{conn, gateway}, nil
		}
		<-attempt.Done()
		cancel()
		slice = min(2*slice, lastProbe)
	}
	return accepted{}, ctx.Err()
}
