package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
)

// Dialer connects to services behind a gateway: each DialContext knocks first. It fits where a net.Dialer does, such as
// in an http.Transport.
//
// A Dialer may be used by several goroutines at once.
type Dialer struct {
	Profile *keys.Profile   // the gateway; required
	Service service.Service // zero: the profile's service that has the port
	For     time.Duration   // as in Command
	Source  Source          // as in Command
	Timeout time.Duration   // as in Command, and again for looking up another host and for the connection
}

// DialContext knocks at the gateway and then connects to the address, HOST:PORT, in a family that was granted. If the
// host is the profile's name or address, or empty, it is the gateway itself; any other host, such as a second address
// of the gateway, is looked up. The network is tcp, tcp4 or tcp6.
//
// The error is one of [Plan.Dial].
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return d.dial(ctx, network, address, system{})
}

func (d *Dialer) dial(ctx context.Context, family, address string, n network) (net.Conn, error) {
	if d.Profile == nil {
		return nil, errors.New("a Dialer needs a Profile")
	}
	host, port, err := splitHostPort(address)
	if err != nil {
		return nil, err
	}
	wanted, err := d.service(port)
	if err != nil {
		return nil, err
	}
	plan, err := prepare(ctx, d.Profile, Command{Type: spa.TypeOpen, Services: []service.Service{wanted},
		For: d.For, Source: d.Source, Timeout: d.Timeout}, n)
	if err != nil {
		return nil, err
	}
	if err := plan.only(family); err != nil {
		return nil, err
	}
	if !d.isGateway(host) {
		if plan.hosts, err = plan.lookup(ctx, host); err != nil {
			return nil, err
		}
	}
	conn, _, err := plan.Dial(ctx, port)
	return conn, err
}

// splitHostPort is net.SplitHostPort for numeric ports.
func splitHostPort(address string) (string, uint16, error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return "", 0, fmt.Errorf("address %q: the port is a number of 1 to 65535", address)
	}
	return host, uint16(port), nil
}

// service returns the service to request for a port.
func (d *Dialer) service(port uint16) (service.Service, error) {
	if d.Service != (service.Service{}) {
		return d.Service, nil
	}
	var found []string
	for name, all := range d.Profile.Services {
		for _, text := range all {
			p, err := service.ParsePorts(text)
			if err == nil && p.Proto == service.TCP && p.Low <= port && port <= p.High {
				found = append(found, name)
				break
			}
		}
	}
	if len(found) != 1 {
		slices.Sort(found)
		return service.Service{}, fmt.Errorf("host %s has %d services with tcp/%d %v: set Dialer.Service",
			d.Profile.Name, len(found), port, found)
	}
	return service.Service{Name: found[0]}, nil
}

// isGateway reports whether the host to connect to is the gateway itself.
func (d *Dialer) isGateway(host string) bool {
	own, _, _ := service.SplitAddress(d.Profile.Address)
	return host == "" || host == d.Profile.Name || host == own
}

// lookup looks up the host to connect to, within the command's timeout, as for the gateway.
func (p *Plan) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, p.Command.Timeout)
	defer cancel()
	return lookup(ctx, host, p.net)
}

// lookup returns the addresses of a host.
func lookup(ctx context.Context, host string, n network) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	addrs, err := n.Lookup(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("looking up %q: %w", host, err)
	}
	return unmapped(addrs), nil
}

// only keeps the routes of a network's family.
func (p *Plan) only(network string) error {
	switch network {
	case "tcp":
		return nil
	case "tcp4", "tcp6":
	default:
		return fmt.Errorf("network %q: %w", network, errors.ErrUnsupported)
	}
	p.Routes = slices.DeleteFunc(p.Routes, func(r Route) bool { return r.To[0].Addr().Is4() != (network == "tcp4") })
	if len(p.Routes) == 0 {
		return fmt.Errorf("%s has no address for %s", p.Profile.Name, network)
	}
	return nil
}
