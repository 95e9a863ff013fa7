package client

import (
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

// blind knocks at a gateway that sends no receipts. An open is over when the ports
// accept; what nothing can confirm is sent a few times.
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
		if a, err := k.plan.probe(probing, k.route.Local, k.probed(), ports); err == nil {
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

// confirmed is the answer that a port gave by accepting.
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
	if k.err != nil { // also when ctx has ended meanwhile: the socket is closed then
		return k.silent(nil)
	}
	return Answer{Verdict: Sent, Route: k.route, Gateway: k.route.To[0].Addr(), Tries: len(k.packets)}
}

// gateways are the route's addresses, each once.
func (k *knocking) gateways() []netip.Addr {
	var out []netip.Addr
	for _, to := range k.route.To {
		if !slices.Contains(out, to.Addr()) {
			out = append(out, to.Addr())
		}
	}
	return out
}

// probed are the addresses that are tried: those to connect to, where they are others
// than the gateway's.
func (k *knocking) probed() []netip.Addr {
	if len(k.plan.hosts) == 0 {
		return k.gateways()
	}
	return ofFamily(k.plan.hosts, k.route.To[0].Addr().Is4())
}

// ofFamily are the addresses of one family.
func ofFamily(all []netip.Addr, is4 bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		if a.Is4() == is4 {
			out = append(out, a)
		}
	}
	return out
}

// probePorts are the TCP ports that accept once the command is carried out: the
// first of each service. They are none for a close, or if a service has none that the profile knows.
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

// Ports are a service's ports as far as the profile knows them.
func (p *Plan) Ports(s service.Service) []service.Ports {
	if s.Name == "" {
		return []service.Ports{{Proto: s.Proto, Low: s.Port, High: s.Port}}
	}
	var out []service.Ports
	for _, text := range p.Profile.Services[s.Name] {
		if ports, err := service.ParsePorts(text); err == nil {
			out = append(out, ports)
		}
	}
	return out
}

// FirstTCP returns the first TCP port among some, and whether there is one.
func FirstTCP(all []service.Ports) (uint16, bool) {
	for _, ports := range all {
		if ports.Proto == service.TCP {
			return ports.Low, true
		}
	}
	return 0, false
}

// WaitOpen returns nil when a TCP port of each service that an answer says is open
// accepts connections, the first of each, and ctx's error when it ends before.
// It returns ErrNoTCP if there is none to try.
func (p *Plan) WaitOpen(ctx context.Context, a Answer) error {
	if a.Receipt == nil {
		return nil // a probe has found them accepting already
	}
	var ports []uint16
	for _, granted := range a.Receipt.Services {
		if port, ok := FirstTCP(granted.Ports); ok {
			ports = append(ports, port)
		}
	}
	if len(ports) == 0 {
		return ErrNoTCP
	}
	by, err := p.probe(ctx, a.Route.Local, []netip.Addr{a.Gateway}, ports)
	if err != nil {
		return err
	}
	return by.conn.Close()
}

// Reachable reports whether a TCP port of each of the command's services accepts a connection, the
// first of each as the profile has it, where nothing was heard from the gateway: if only its
// receipts were lost, they are open. They are tried once.
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

// once tries ports of the gateway's addresses, all addresses at the same time, where no packet was
// answered and receipts should have come. It returns a connection to the last port of the first
// address at which all of them accept, or nil.
func (p *Plan) once(ctx context.Context, answers []Answer, ports []uint16) net.Conn {
	if !p.Profile.Receipts || len(answers) == 0 || slices.ContainsFunc(answers,
		func(a Answer) bool { return !errors.Is(a.Err, ErrNoAnswer) }) {
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

// all connects to the ports of a host one after the other, and returns the last connection, or nil
// where one does not accept.
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

// accepted is a connection that a probe made, and with which address.
type accepted struct {
	conn    net.Conn
	gateway netip.Addr
}

// probe connects to the ports one after the other until each has accepted, and
// returns the connection to the last.
func (p *Plan) probe(ctx context.Context, local netip.Addr, gateways []netip.Addr, ports []uint16) (accepted, error) {
	var last accepted
	for i, port := range ports {
		if i > 0 {
			last.conn.Close()
		}
		var err error
		if last, err = p.probePort(ctx, local, gateways, port); err != nil {
			return accepted{}, err
		}
	}
	return last, nil
}

// probePort tries a port at each address in turn. Every attempt has its time, twice
// that of the attempt before: a dropped SYN is sent again by the system only after
// a second, a new attempt sends one at once. A refusal is not believed either.
func (p *Plan) probePort(ctx context.Context, local netip.Addr, gateways []netip.Addr, port uint16) (accepted, error) {
	slice := firstProbe
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
