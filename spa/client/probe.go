package client

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"sallyport/spa"
)

const (
	fewTries   = 3                     // packets of a command that nothing can confirm
	firstProbe = 20 * time.Millisecond // the first attempt to connect may come before the grant and be dropped
	lastProbe  = 2 * time.Second       // longer than any round trip
)

// blind knocks at a gateway that sends no receipts. An open is over when the ports
// accept; what nothing can confirm is sent a few times.
func (k *knocking) blind(ctx context.Context) Answer {
	ports := k.probePorts()
	if len(ports) == 0 {
		return k.unconfirmed(ctx)
	}
	probing, cancel := context.WithCancel(ctx)
	open := make(chan accepted, 1)
	finished := make(chan struct{})
	defer func() {
		cancel()
		<-finished
		k.leave(open)
	}()
	if err := k.send(0); err != nil {
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
		if err := k.send(try); err != nil {
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
		if err := k.send(try); err != nil {
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
		port, ok := firstTCP(k.plan.Ports(s))
		if !ok {
			return nil
		}
		ports = append(ports, port)
	}
	return ports
}

// Ports are a service's ports as far as the profile knows them.
func (p *Plan) Ports(s spa.Service) []spa.Ports {
	if s.Name == "" {
		return []spa.Ports{{Proto: s.Proto, Low: s.Port, High: s.Port}}
	}
	var out []spa.Ports
	for _, text := range p.Profile.Services[s.Name] {
		if ports, err := spa.ParsePorts(text); err == nil {
			out = append(out, ports)
		}
	}
	return out
}

// firstTCP is the first TCP port among some.
func firstTCP(all []spa.Ports) (uint16, bool) {
	for _, ports := range all {
		if ports.Proto == spa.TCP {
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
		if port, ok := firstTCP(granted.Ports); ok {
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
