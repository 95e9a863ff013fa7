package client

import (
	"context"
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
	open := make(chan netip.Addr, 1)
	finished := make(chan struct{})
	defer func() {
		cancel()
		<-finished
	}()
	if err := k.send(0); err != nil {
		close(finished)
		return k.silent(err)
	}
	go func() {
		defer close(finished)
		if gateway, err := k.plan.probe(probing, k.route.Local, k.gateways(), ports); err == nil {
			open <- gateway
		}
	}()
	return k.until(ctx, open)
}

// until sends the other packets until a probe succeeds or the time is over.
func (k *knocking) until(ctx context.Context, open <-chan netip.Addr) Answer {
	for try := 1; ; try++ {
		wait := k.plan.Command.Timeout
		if try < len(k.at) {
			wait = k.at[try]
		}
		timer := time.NewTimer(time.Until(k.began.Add(wait)))
		select {
		case gateway := <-open:
			timer.Stop()
			return Answer{Verdict: Opened, Route: k.route, Gateway: gateway, Tries: len(k.packets)}
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

// probePorts are the TCP ports that accept once the command is carried out: the
// first of each service. They are none for a close, or if a service has none that the profile knows.
func (k *knocking) probePorts() []uint16 {
	if k.plan.Command.Type != spa.TypeOpen {
		return nil
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
	_, err := p.probe(ctx, a.Route.Local, []netip.Addr{a.Gateway}, ports)
	return err
}

// probe connects to the ports one after the other until each has accepted, and
// returns the address that accepted the last.
func (p *Plan) probe(ctx context.Context, local netip.Addr, gateways []netip.Addr, ports []uint16) (netip.Addr, error) {
	var gateway netip.Addr
	for _, port := range ports {
		accepted, err := p.probePort(ctx, local, gateways, port)
		if err != nil {
			return netip.Addr{}, err
		}
		gateway = accepted
	}
	return gateway, nil
}

// probePort tries a port at each address in turn. Every attempt has its time, twice
// that of the attempt before: a dropped SYN is sent again by the system only after
// a second, a new attempt sends one at once. A refusal is not believed either.
func (p *Plan) probePort(ctx context.Context, local netip.Addr, gateways []netip.Addr, port uint16) (netip.Addr, error) {
	slice := firstProbe
	for try := 0; ctx.Err() == nil; try++ {
		gateway := gateways[try%len(gateways)]
		attempt, cancel := context.WithTimeout(ctx, slice)
		conn, err := p.net.Dial(attempt, local, netip.AddrPortFrom(gateway, port))
		if err == nil {
			cancel()
			conn.Close()
			return gateway, nil
		}
		<-attempt.Done()
		cancel()
		slice = min(2*slice, lastProbe)
	}
	return netip.Addr{}, ctx.Err()
}
