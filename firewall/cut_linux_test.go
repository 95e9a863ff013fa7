package firewall

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// cuts revokes what matches and ends its sessions, of which there must be want.
func (s *site) cuts(m Match, want int) {
	s.Helper()
	if n, err := s.Cut(s.Context(), s.revoke(m)); n != want || err != nil {
		s.Errorf("got %d sessions ended, %v, want %d", n, err, want)
	}
}

// session is a connection with both ends known.
type session struct{ client, server net.Conn }

// talk begins a session, and closes it when the test ends.
func (s *site) talk(accept accepting, from, to, port string) session {
	s.Helper()
	c := lab.Value(s.dial(from, to, port))(s)
	s.Cleanup(func() { c.Close() })
	server := accept(c)
	s.speaks(server, c)
	return session{c, server}
}

// over checks that the server has lost the session and the client notices.
func (s *site) over(v session) {
	s.Helper()
	lab.Eventually(s, "the end of the server's side", func() bool {
		_, err := v.server.Write([]byte("news"))
		return err != nil
	})
	stillUnderWay := hears(v.client, silence)
	if stillUnderWay && hears(v.client, silence) {
		s.Error("the client still hears its server")
	}
}

func TestCutEndsSessions(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, guarding("tcp/2300", "tcp/2400"))
		accept, other := s.listen(":2300"), s.listen(":2400")
		s.grantPorts("one", f.alice, long, "tcp/2300")
		s.grantPorts("two", f.alice, long, "tcp/2400")
		s.grantPorts("one", f.stranger, long, "tcp/2300")
		first, second := s.talk(accept, f.alice, f.gateway, "2300"), s.talk(accept, f.alice, f.gateway, "2300")
		elsewhere := s.talk(other, f.alice, f.gateway, "2400")
		theirs := s.talk(accept, f.stranger, f.gateway, "2300")

		s.cuts(Match{Services: []string{"one"}, Source: netip.MustParseAddr(f.alice)}, 2)
		s.over(first)
		s.over(second)
		s.speaks(elsewhere.server, elsewhere.client)
		s.speaks(theirs.server, theirs.client)
		s.cuts(Match{Services: []string{"one"}, Source: netip.MustParseAddr(f.alice)}, 0)
	})
}

// TestCutTellsTheClient: a reset leaves a port whose sessions end with the grant.
func TestCutTellsTheClient(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, cutting("tcp/2300"))
		s.grantPorts("one", f.alice, long, "tcp/2300")
		v := s.talk(s.listen(":2300"), f.alice, f.gateway, "2300")
		s.cuts(Match{}, 1)
		s.must(v.client.SetReadDeadline(time.Now().Add(lab.Patience)))
		if _, err := v.client.Read(make([]byte, 100)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: got %v, want a reset", f.name, err)
		}
	})
}

// TestCutSparesWhatAnotherGrantCovers: a client behind the same address, and another service of the same client, keep
// their sessions.
func TestCutSparesWhatAnotherGrantCovers(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, guarding("tcp/2300-2310"))
		accept := s.listen(":2300")
		s.grantPorts("one", "192.0.2.2", long, "tcp/2300")
		s.grantPorts("all", "192.0.2.2", long, "tcp/2300-2310")
		s.must(s.Grant(t.Context(), []Grant{{
			Client: "bob", Service: "one", Source: netip.MustParseAddr("192.0.2.2"),
			Ports: []service.Ports{ports("tcp/2300")}, Until: time.Now().Add(long),
		}}, time.Now()))
		v := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300")
		s.cuts(Match{Client: "alice", Services: []string{"one"}}, 0)
		s.cuts(Match{Client: "bob"}, 0)
		s.speaks(v.server, v.client)
		s.cuts(Match{Client: "alice"}, 1)
		s.over(v)
	})
}

// TestCutEndsWhatDNATLeadsOn: the server is another machine's, and keeps sending.
func TestCutEndsWhatDNATLeadsOn(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, guarding("tcp/2222"))
		accept := s.listenOn(s.behind(), ":22")
		s.publish(f)
		s.grantPorts("one", f.alice, long, "tcp/2222")
		s.grantPorts("one", f.stranger, long, "tcp/2222")
		v, theirs := s.talk(accept, f.alice, f.gateway, "2222"), s.talk(accept, f.stranger, f.gateway, "2222")
		transit := s.talk(accept, f.alice, innerAddr[f.name], "22")
		s.cuts(Match{Source: netip.MustParseAddr(f.alice)}, 1)
		for range 5 {
			v.server.Write([]byte("news"))
		}
		if hears(v.client, silence) {
			t.Error("the client still hears its server")
		}
		v.client.Write([]byte("hello"))
		s.speaks(theirs.server, theirs.client)
		s.speaks(transit.server, transit.client)
		s.dark(f.alice, f.gateway, "2222")
	})
}

func TestCutEndsUDP(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, guarding("udp/5000"))
		gateway := net.JoinHostPort(f.gateway, "5000")
		server, client, theirs := s.talkUDP(f)
		s.cuts(Match{Source: netip.MustParseAddr(f.alice)}, 1)
		for range 3 { // the server keeps sending
			server.WriteTo([]byte("news"), client.LocalAddr()) // this may fail, because the guard forbids it
			if s.gets(client, silence) {
				t.Fatal("the client still hears its server")
			}
			s.send(client, gateway)
			if s.gets(server, silence) {
				t.Fatal("the server still hears its client")
			}
		}
		s.utters(server, theirs)
	})
}

// talkUDP begins a session of alice and one of the stranger with a server at udp/5000, by a grant for each.
func (s *site) talkUDP(f sides) (server, mine, theirs *net.UDPConn) {
	s.Helper()
	server = s.udp(s.gw, "[::]:5000")
	begin := func(from string) *net.UDPConn {
		c := s.udp(s.client, net.JoinHostPort(from, "4000"))
		s.grantPorts("one", from, long, "udp/5000")
		s.send(c, net.JoinHostPort(f.gateway, "5000"))
		if !s.gets(server, lab.Patience) {
			s.Fatal("the question was lost")
		}
		s.utters(server, c)
		return c
	}
	return server, begin(f.alice), begin(f.stranger)
}

// utters sends a datagram from a server that was asked before.
func (s *site) utters(server, client *net.UDPConn) {
	s.Helper()
	s.send(server, client.LocalAddr().String())
	if !s.gets(client, lab.Patience) {
		s.Fatal("the client does not hear its server")
	}
}

// TestCutEndsConnectedUDP: the server's socket reports that the session is over.
func TestCutEndsConnectedUDP(t *testing.T) {
	s := guarded(t, guarding("udp/5000"))
	client := s.udp(s.client, "192.0.2.2:4000")
	s.grantPorts("one", "192.0.2.2", long, "udp/5000")
	say := s.connectedUDP(client)
	s.cuts(Match{}, 1)
	first := say() // the server notices
	if first == nil && say() == nil {
		t.Error("the server's socket is as it was")
	}
}

// connectedUDP is a server whose socket is connected to the client, which has answered.
func (s *site) connectedUDP(client *net.UDPConn) (say func() error) {
	s.Helper()
	var server net.Conn
	s.must(s.gw.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5000}}
		server, err = d.Dial("udp", client.LocalAddr().String())
		return err
	}))
	s.Cleanup(func() { server.Close() })
	s.send(client, "192.0.2.1:5000")
	if !s.gets(server.(*net.UDPConn), lab.Patience) {
		s.Fatal("the question was lost")
	}
	return func() error { _, err := server.Write([]byte("news")); return err }
}

// TestCutSparesWhatNoGrantLetIn: sessions of trusted interfaces, and the host's own flows from the same port, are
// left alone.
func TestCutSparesWhatNoGrantLetIn(t *testing.T) {
	s := guarded(t, func(c *Config) { c.Trusted = []string{"vs"}; guarding("tcp/2200", "tcp/2300")(c) })
	accept := s.listen(":2300")
	s.grantPorts("one", "192.0.2.2", long, "tcp/2200", "tcp/2300")
	trusted := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300")
	echo := lab.Value(lab.EchoServer(s.client, "192.0.2.2:7000"))(s)
	defer echo.Close()
	own := lab.Value(lab.Dial(s.gw, "192.0.2.1:2200", "192.0.2.2:7000", lab.Patience))(s)
	defer own.Close()
	s.echoes(own)
	s.cuts(Match{}, 0)
	s.speaks(trusted.server, trusted.client)
	s.echoes(own)
}

// TestCutEndsUntracked: a session that another table keeps out of connection tracking.
func TestCutEndsUntracked(t *testing.T) {
	s := guarded(t, guarding("tcp/2300"))
	s.another(func(c *nft.Conn) {
		chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, -300, &expr.Notrack{})
		table := c.AddTable(&nft.Table{Name: "another too", Family: nft.TableFamilyINet})
		chain := c.AddChain(nftables.Hooked(&nft.Chain{Table: table, Name: "out"}, nft.ChainHookOutput, -300))
		c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Notrack{}}})
	})
	accept := s.listen(":2300")
	s.grantPorts("one", "192.0.2.2", long, "tcp/2300")
	v := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300")
	s.cuts(Match{}, 1)
	s.over(v)
}

// TestCutNeedsOneCapability: Cut needs only the capability that the daemon keeps, and opens no socket.
func TestCutNeedsOneCapability(t *testing.T) {
	s := guarded(t, guarding("tcp/2300"))
	accept := s.listen(":2300")
	s.grantPorts("one", "192.0.2.2", long, "tcp/2300")
	v := s.talk(accept, "192.0.2.2", "192.0.2.1", "2300")
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends without its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		admin := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_ADMIN, Permitted: 1 << unix.CAP_NET_ADMIN}}
		if err := unix.Capset(&header, &admin[0]); err != nil {
			t.Error(err)
			return
		}
		s.cuts(Match{}, 1) // in another network namespace than the gateway's
	}()
	<-done
	s.over(v)
}

func TestCutOfNothing(t *testing.T) {
	s := guarded(t, nil)
	if n, err := s.Cut(t.Context(), nil); n != 0 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := s.Cut(t.Context(), []Grant{{Client: "alice"}}); err == nil {
		t.Error("a grant without an address was accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Cut(ctx, []Grant{sshGrant("alice", "192.0.2.2", long)}); err != context.Canceled {
		t.Errorf("got %v, want that the context has ended", err)
	}
}
