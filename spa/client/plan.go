package client

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
)

// prepare is Prepare on a given network.
func prepare(ctx context.Context, p *keys.Profile, c Command, n network) (*Plan, error) {
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Timeout < 0 {
		return nil, &CommandError{fmt.Errorf("the timeout is %v and must be more than 0", c.Timeout)}
	}
	if p.IsFleet() {
		return nil, &CommandError{fmt.Errorf("%s is a fleet: knock on one of its gateways", p.Name)}
	}
	source, err := c.Source.or(p.Source)
	if err != nil {
		return nil, err
	}
	c.Source = source
	plan := &Plan{Profile: p, Command: c, net: n,
		sender: spa.Sender{Server: p.ServerID, Gate: p.Gate, ID: p.ID, Key: p.Key}}
	if err := plan.fits(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	gateways, ports, err := resolve(ctx, p, n)
	if err != nil {
		return nil, err
	}
	plan.gateways = targets(gateways, ports[:1])
	if err := plan.route(ctx, gateways, ports); err != nil {
		return nil, err
	}
	return plan, nil
}

// fits seals the request once to check that it fits a packet: nothing may fail later that could have been reported
// earlier.
func (p *Plan) fits() error {
	r := p.request(Route{ID: spa.NewRequestID()}, time.Now())
	if _, err := spa.Seal(r, p.sender); err != nil {
		return &CommandError{err}
	}
	r.First = r.Time.Add(-time.Minute)
	_, err := spa.Seal(r, p.sender)
	p.room = err == nil
	return nil
}

// request returns the request for a route, stamped now.
func (p *Plan) request(r Route, now time.Time) spa.Request {
	return spa.Request{ID: r.ID, Type: p.Command.Type, Time: now, For: p.Command.For,
		Source: r.Source, Services: p.Command.Services, LetIn: p.Command.LetIn}
}

// resolve returns a profile's addresses and the knock ports to use with them: the port in the address, or the
// profile's.
func resolve(ctx context.Context, p *keys.Profile, n network) ([]netip.Addr, []uint16, error) {
	host, port, err := service.SplitAddress(p.Address)
	if err != nil {
		return nil, nil, fmt.Errorf("the address of host %s: %w", p.Name, err)
	}
	ports := p.KnockPorts
	if port != 0 {
		ports = []uint16{port}
	}
	if len(ports) == 0 {
		return nil, nil, fmt.Errorf("the profile of %s has no knock port", p.Name)
	}
	addrs, err := lookup(ctx, host, n)
	return addrs, ports, err
}

// unmapped converts IPv4-mapped addresses to IPv4 and removes duplicates.
func unmapped(addrs []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		if a = a.Unmap(); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// route adds a route for each family that has an address and a route there, unless the stated source is of the other
// family, and only for that of the network to let in if there is one. It returns an error if none is left.
func (p *Plan) route(ctx context.Context, gateways []netip.Addr, ports []uint16) error {
	var trouble error
	for _, is4 := range []bool{true, false} {
		family := ofFamily(gateways, is4)
		if len(family) == 0 {
			continue
		}
		r, err := p.routeFamily(ctx, family, ports)
		if err != nil {
			trouble = errors.Join(trouble, err)
			continue
		}
		p.Routes = append(p.Routes, r)
	}
	p.narrow()
	if len(p.Routes) > 0 {
		return nil
	}
	if trouble == nil {
		trouble = fmt.Errorf("%q has no address", p.Profile.Address)
	}
	return trouble
}

// narrow leaves only the route of the family of the network to let in, if there is one: one request is enough, and in
// the other family the network is not around this machine.
func (p *Plan) narrow() {
	n := p.Command.LetIn
	if !n.IsValid() {
		return
	}
	same := func(r Route) bool { return r.To[0].Addr().Is4() == n.Addr().Is4() }
	if slices.ContainsFunc(p.Routes, same) { // otherwise the gateway may still let in another address from here
		p.Routes = slices.DeleteFunc(p.Routes, func(r Route) bool { return !same(r) })
	}
}

// routeFamily finds the route to the gateway's addresses of one family. All packets of a command must state the same
// source, so the first address decides.
func (p *Plan) routeFamily(ctx context.Context, gateways []netip.Addr, ports []uint16) (Route, error) {
	source := p.Command.Source
	if source.kind == sourceStated && source.addr.Is4() != gateways[0].Is4() {
		return Route{}, &CommandError{fmt.Errorf("%v cannot be the source of packets to %v: one is IPv4, the other IPv6",
			source.addr, gateways[0])}
	}
	var reachable []netip.Addr
	var first netip.Addr
	var trouble error
	for _, gateway := range gateways {
		local, err := p.net.Local(netip.AddrPortFrom(gateway, ports[0]))
		if err != nil {
			trouble = fmt.Errorf("no route to %v: %w", gateway, err)
			continue
		}
		if len(reachable) == 0 {
			first = local
		}
		reachable = append(reachable, gateway)
	}
	if len(reachable) == 0 {
		return Route{}, trouble
	}
	r := Route{ID: spa.NewRequestID(), Own: first}
	if source.kind == sourceSTUN {
		addr, err := p.mapped(ctx, source.server, first.Is4())
		if err != nil {
			return Route{}, err // never continue without it: an attacker would force just that
		}
		source = Source{kind: sourceStated, addr: addr}
	}
	stated, bind := source.state(first)
	if stated.IsValid() {
		translated := reachable[0]
		if reachable = slices.DeleteFunc(reachable, NAT64); len(reachable) == 0 {
			return Route{}, &CommandError{&NAT64Error{Gateway: translated, Stated: stated}}
		}
	}
	r.Source, r.To = stated, targets(reachable, ports)
	if bind.IsValid() && p.bindable(ctx, bind) {
		r.Local = bind
	}
	return r, nil
}

// bindable reports whether an address is this machine's own. A stated address that is not local belongs to a NAT in
// front of it.
func (p *Plan) bindable(ctx context.Context, a netip.Addr) bool {
	conn, err := p.net.Listen(ctx, a)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// targets combines addresses and ports: each port with all addresses before the next port.
func targets(addrs []netip.Addr, ports []uint16) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(addrs)*len(ports))
	for _, port := range ports {
		for _, a := range addrs {
			out = append(out, netip.AddrPortFrom(a, port))
		}
	}
	return out
}
