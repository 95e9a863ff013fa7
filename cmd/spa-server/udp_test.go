package main

import (
	"net"
	"net/netip"
	"time"

	"sallyport/spa/lab"
)

// serveUDP runs a UDP server in the gateway that echoes datagrams.
func (g *gateway) serveUDP(port uint16) {
	g.t.Helper()
	var conn *net.UDPConn
	lab.Must(g.t, g.host.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		return err
	}))
	g.t.Cleanup(func() { conn.Close() })
	go func() {
		var buf [2048]byte
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf[:])
			if err != nil {
				return
			}
			conn.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
}

// hears reports whether a datagram to a port of the gateway is answered within the time, and with which error if not.
func (g *gateway) hears(from, to string, within time.Duration) (bool, error) {
	g.t.Helper()
	var conn *net.UDPConn
	lab.Must(g.t, g.client.Do(func() (err error) {
		local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))
		conn, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
		return err
	}))
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return false, err
	}
	conn.SetReadDeadline(time.Now().Add(within))
	var buf [16]byte
	n, err := conn.Read(buf[:])
	return err == nil && string(buf[:n]) == "hello", err
}

func (g *gateway) wantHeard(want bool, from, to, when string) {
	g.t.Helper()
	if got, err := g.hears(from, to, wait(want)); got != want {
		g.t.Errorf("%s: %s is heard at udp %s: %v (%v), want %v\nserver:\n%s", when, from, to, got, err, want, g.server.log())
	}
}
