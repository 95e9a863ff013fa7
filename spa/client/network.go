package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// network is what a client needs of the system. Tests have one without an operating system.
type network interface {
	// Lookup returns all the IPv4 and IPv6 addresses of a host name.
	Lookup(ctx context.Context, host string) ([]netip.Addr, error)
	// Local returns the address that packets to a gateway leave from, without sending any.
	Local(to netip.AddrPort) (netip.Addr, error)
	// Listen opens a UDP socket on an address, or on any of the family if it is unspecified. The socket is not
	// connected: a connected one would report forged ICMP errors, and miss the receipts of a gateway that answers from
	// another of its addresses.
	Listen(ctx context.Context, local netip.Addr) (net.PacketConn, error)
	// Dial opens a TCP connection, from the local address if it is valid.
	Dial(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error)
	// Changes returns a channel that signals when this machine's addresses may have changed. The function stops it, and
	// returns when it has ended completely.
	Changes() (<-chan struct{}, func())
}

// system is the network of the operating system.
type system struct{}

var _ network = system{}

// Lookup queries each family separately: some resolvers never answer for IPv6, and a joint lookup would then return
// neither.
func (system) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	given := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	families := []string{"ip4", "ip6"}
	addrs, errs := make([][]netip.Addr, len(families)), make([]error, len(families))
	var asking sync.WaitGroup
	for i, family := range families {
		asking.Go(func() {
			if addrs[i], errs[i] = net.DefaultResolver.LookupNetIP(ctx, family, host); errs[i] == nil {
				time.AfterFunc(grace, cancel)
			}
		})
	}
	asking.Wait()
	if all := slices.Concat(addrs...); len(all) > 0 {
		return all, nil
	}
	if !notFound(errs[0]) {
		return nil, errs[0]
	}
	if notFound(errs[1]) {
		if all := Getent(given, host); len(all) > 0 {
			return all, nil
		}
	}
	return nil, errs[1] // not found either, or the reason why it is unknown
}

func notFound(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}

func (system) Local(to netip.AddrPort) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone(""), nil
}

func (system) Listen(ctx context.Context, local netip.Addr) (net.PacketConn, error) {
	family := "udp6"
	if local.Is4() {
		family = "udp4"
	}
	var lc net.ListenConfig
	return lc.ListenPacket(ctx, family, netip.AddrPortFrom(local, 0).String())
}

func (system) Dial(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	return d.DialContext(ctx, "tcp", to.String())
}

// polled signals every few seconds that something may have changed.
func polled() (<-chan struct{}, func()) {
	ticker := time.NewTicker(lookAgain)
	changes, done := make(chan struct{}), make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		for {
			select {
			case <-ticker.C:
			case <-done:
				return
			}
			select {
			case changes <- struct{}{}:
			case <-done:
				return
			}
		}
	})
	return changes, func() {
		ticker.Stop()
		close(done)
		telling.Wait()
	}
}
