package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"tailscale.com/net/stun"

	"sallyport/keys/service"
)

const (
	stunPort = 3478                   // RFC 8489, section 18.6
	stunRTO  = 500 * time.Millisecond // before the first retransmission, then twice as long each time: section 6.2.1
	stunTime = 5 * time.Second        // in all: the knock follows
)

// mapped asks a STUN server (RFC 8489) at which address of one family it sees this machine. An attacker who can read
// and forge the answer can have another address stated; one who can only send cannot.
func (p *Plan) mapped(ctx context.Context, server string, is4 bool) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, stunTime)
	defer cancel()
	to, err := p.stunServer(ctx, server, is4)
	if err != nil {
		return netip.Addr{}, err
	}
	local := netip.IPv6Unspecified()
	if is4 {
		local = netip.IPv4Unspecified()
	}
	conn, err := p.net.Listen(ctx, local)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("opening a socket: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // wakes the reader
	defer stop()
	addr, err := transact(ctx, conn, to)
	if err == nil && (addr.Is4() != is4 || !usable(addr)) {
		err = errors.New("it answered with an address that cannot be this machine's")
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("asking the STUN server %s (%v): %w", server, to, err)
	}
	return addr, nil
}

// stunServer returns the server's first address of a family.
func (p *Plan) stunServer(ctx context.Context, server string, is4 bool) (netip.AddrPort, error) {
	host, port, err := service.SplitAddress(server)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("STUN server %q: %w", server, err)
	}
	if port == 0 {
		port = stunPort
	}
	addrs, err := lookup(ctx, host, p.net)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addrs = ofFamily(addrs, is4)
	if len(addrs) == 0 {
		return netip.AddrPort{}, fmt.Errorf("the STUN server %s has no address of the gateway's family (IPv4 or IPv6)", host)
	}
	return netip.AddrPortFrom(addrs[0], port), nil
}

// transact sends a request until it is answered, and ignores everything that is not its answer.
func transact(ctx context.Context, conn net.PacketConn, to netip.AddrPort) (netip.Addr, error) {
	id := stun.NewTxID()
	request := stun.Request(id)
	for wait := stunRTO; ctx.Err() == nil; wait *= 2 {
		if _, err := conn.WriteTo(request, net.UDPAddrFromAddrPort(to)); err != nil && ctx.Err() == nil {
			return netip.Addr{}, err
		}
		if addr, ok := stunAnswer(ctx, conn, id, to, time.Now().Add(wait)); ok {
			return addr, nil
		}
	}
	return netip.Addr{}, errors.New("no answer")
}

// stunAnswer reads until the answer to a request arrives, the deadline passes or ctx ends.
func stunAnswer(ctx context.Context, conn net.PacketConn, id stun.TxID, from netip.AddrPort,
	deadline time.Time) (netip.Addr, bool) {
	if conn.SetReadDeadline(deadline) != nil {
		return netip.Addr{}, false
	}
	buf := make([]byte, 2048)
	for ctx.Err() == nil {
		n, sender, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return netip.Addr{}, false
		}
		if err != nil { // an ICMP error, as some systems report it: anyone can forge those
			pause(ctx, errorPause)
			continue
		}
		answered, seen, err := stun.ParseResponse(buf[:n])
		if err == nil && answered == id && addrPort(sender) == from {
			return seen.Addr().Unmap(), true
		}
	}
	return netip.Addr{}, false
}

// addrPort returns the source of a datagram.
func addrPort(a net.Addr) netip.AddrPort {
	udp, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := udp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
