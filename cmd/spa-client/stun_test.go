package main

import (
	"net"
	"net/netip"

	"github.com/rogpeppe/go-internal/testscript"
	"tailscale.com/net/stun"
)

// stunServerCommand is "stunserver ADDRESS|silent": it starts a STUN server that answers with this address, or not at
// all, and sets STUN to its own address.
func stunServerCommand(ts *testscript.TestScript, neg bool, args []string) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	ts.Check(err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			id, err := stun.ParseBindingRequest(buf[:n])
			if err != nil || args[0] == "silent" {
				continue
			}
			conn.WriteToUDPAddrPort(stun.Response(id, netip.AddrPortFrom(netip.MustParseAddr(args[0]), from.Port())), from)
		}
	}()
	ts.Defer(func() {
		conn.Close()
		<-done
	})
	ts.Setenv("STUN", conn.LocalAddr().String())
}
