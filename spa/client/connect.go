package client

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"sallyport/keys/service"
)

// PortError is returned if it is unclear which port of a service to connect to, or if the requested port does not
// belong to the service.
type PortError struct {
	Service service.Service
	Ports   []service.Ports // of the service, as far as known
	Port    uint16          // requested; 0: none was
}

// Error says which ports the service has.
func (e *PortError) Error() string {
	var all []string
	for _, p := range e.Ports {
		all = append(all, p.String())
	}
	has := strings.Join(all, ", ")
	switch {
	case len(all) == 0:
		return fmt.Sprintf("the ports of %s are not known", e.Service)
	case e.Port != 0:
		return fmt.Sprintf("tcp/%d is not a port of %s (%s)", e.Port, e.Service, has)
	case !e.HasTCP():
		return fmt.Sprintf("%s has no TCP port (%s)", e.Service, has)
	}
	return fmt.Sprintf("%s has several TCP ports: %s", e.Service, has)
}

// HasTCP reports whether the service has a port for TCP connections.
func (e *PortError) HasTCP() bool {
	_, ok := FirstTCP(e.Ports)
	return ok
}

// OnlyPort returns the port for a connection to a service: the requested one, if the service has it, or, for 0, the
// only TCP port. Otherwise it returns a [*PortError].
func OnlyPort(s service.Service, all []service.Ports, asked uint16) (uint16, error) {
	var only uint16
	tcp := 0
	for _, p := range all {
		if p.Proto != service.TCP {
			continue
		}
		if asked != 0 && p.Low <= asked && asked <= p.High {
			return asked, nil
		}
		only = p.Low
		tcp += int(p.High-p.Low) + 1
	}
	if asked != 0 || tcp != 1 {
		return 0, &PortError{Service: s, Ports: all, Port: asked}
	}
	return only, nil
}

// connect connects to the port that an answer opened.
func (p *Plan) connect(ctx context.Context, a Answer) (net.Conn, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	port, err := p.portOf(a)
	if err != nil {
		return nil, err
	}
	hosts := []netip.Addr{a.Gateway}
	if len(p.hosts) > 0 {
		hosts = ofFamily(p.hosts, a.Gateway.Is4())
	}
	ctx, cancel := context.WithTimeout(ctx, p.Command.Timeout)
	defer cancel()
	err = fmt.Errorf("connecting: no %s address among %v", a.Route.Family(), p.hosts)
	for i, host := range hosts {
		var conn net.Conn
		if conn, err = p.try(ctx, a.Route.Local, netip.AddrPortFrom(host, port), len(hosts)-i); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// try connects to one of several addresses; those left share the time equally.
func (p *Plan) try(ctx context.Context, local netip.Addr, to netip.AddrPort, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	conn, err := p.net.Dial(ctx, local, to)
	if err != nil {
		return nil, fmt.Errorf("connecting to %v: %w", to, err)
	}
	return conn, nil
}

// portOf returns the port for a connection through an answer's grant. The receipt's ports count, but it may not list
// all.
func (p *Plan) portOf(a Answer) (uint16, error) {
	service := p.Command.Services[0]
	if a.Receipt == nil || len(a.Receipt.Services) == 0 {
		return OnlyPort(service, p.Ports(service), p.port)
	}
	told := a.Receipt.Services[0]
	if p.port != 0 && told.More {
		return p.port, nil
	}
	return OnlyPort(service, told.Ports, p.port)
}
