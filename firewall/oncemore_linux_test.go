package firewall

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestOnceSamePort: a SYN from the port of a flow that is over, whichever side ended it and before or after it was
// established, begins another flow.
func TestOnceSamePort(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		for _, closed := range []Closed{Drop, Reject} {
			s := guarded(t, both(once("tcp/22", "tcp/23"), func(c *Config) { c.Closed = closed }))
			from := net.JoinHostPort(f.alice, "40000")
			shut := func(port string) {
				t.Helper()
				if c, err := s.attempt(from, f.gateway, port, silence); err == nil {
					c.Close()
					t.Errorf("a second connection from the same port to tcp/%s got in", port)
				}
			}
			s.grantPorts("both", f.alice, long, "tcp/22", "tcp/23")
			c := s.connect(from, f.gateway, "22")
			s.must(c.(*net.TCPConn).SetLinger(0))
			s.must(c.Close())
			shut("22")
			if _, err := s.attempt(from, f.gateway, "23", lab.Patience); err == nil {
				t.Fatal("something listens")
			}
			s.serve(":23")
			shut("23")
			s.grantPorts("both", f.alice, long, "tcp/22", "tcp/23")
			s.connect(from, f.gateway, "23")
		}
	})
}

// TestOnceSYNComesAgain: a SYN that the server does not answer, or whose answer is lost, comes again and gets in.
func TestOnceSYNComesAgain(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		for _, hook := range []*nft.ChainHook{nft.ChainHookInput, nft.ChainHookOutput} {
			s := guarded(t, once("tcp/22"))
			table := &nft.Table{Name: "deaf", Family: nft.TableFamilyINet}
			s.another(func(c *nft.Conn) { // tcp flags & syn == syn drop
				chain := c.AddChain(nftables.Hooked(&nft.Chain{Table: c.AddTable(table), Name: "deaf"}, hook, 200))
				c.AddRule(&nft.Rule{Table: table, Chain: chain,
					Exprs: nftables.Rule(nftables.TCPFlags(nftables.Syn, nftables.Syn), nftables.Drop()).Exprs})
			})
			s.grant("alice", f.alice, long)
			got := make(chan error, 1)
			go func() {
				c, err := s.dial(f.alice, f.gateway, "22")
				if err == nil {
					err = lab.Echoes(c, "late", lab.Patience)
					c.Close()
				}
				got <- err
			}()
			lab.Eventually(t, "the first SYN", func() bool { return s.Grants(time.Now())[0].Taken })
			s.dark(f.alice, f.gateway, "22")
			s.another(func(c *nft.Conn) { c.DelTable(table) })
			s.must(<-got)
			s.dark(f.alice, f.gateway, "22")
		}
	})
}

// TestOnceServerSpeaks: what the server sends to another port of the address does not leave, and opens nothing.
func TestOnceServerSpeaks(t *testing.T) {
	someOnce(t, func(t *testing.T, fl *flows) {
		if fl.proto != service.UDP {
			return
		}
		fl.knock("alice")
		fl.gets1()
		other := fl.udp(fl.client, net.JoinHostPort(fl.alice, "0"))
		fl.server.WriteTo([]byte("hello"), other.LocalAddr()) // dropped, which is an error
		if fl.gets(other, silence) {
			t.Error("the server reaches another port of its client")
		}
		fl.send(other, net.JoinHostPort(fl.gateway, fl.port))
		if fl.gets(fl.server, silence) {
			t.Error("a datagram arrived at the server that had sent one to its sender")
		}
	})
}

// TestOncePortThatLeadsThere: a connection by way of another port takes the grant too.
func TestOncePortThatLeadsThere(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := guarded(t, once("tcp/22"))
		s.redirect()
		s.grant("alice", f.alice, long)
		c := s.connect(f.alice, f.gateway, "2222")
		s.dark(f.alice, f.gateway, "2222")
		s.dark(f.alice, f.gateway, "22")
		s.echoes(c)
	})
}

// TestOnceBare: the guard that stands while the kernel starts connection tracking admits no flow that could be one too
// many.
func TestOnceBare(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := newSite(t, once("tcp/22"))
		s.open()
		s.bare(guard.Plan{Spend: true, Leases: []guard.Lease{{Element: guard.Element{Proto: service.TCP, Port: 22,
			Source: sshGrant("alice", f.alice, long).Source}, Until: time.Now().Add(long)}}})
		s.dark(f.alice, f.gateway, "22")
	})
}

// TestOnceEndUnseen: a flow whose end the gateway did not see is over all the same when its port is used again.
func TestOnceEndUnseen(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := guarded(t, once("tcp/2300"))
		accept := s.listen(":2300")
		s.grantPorts("ssh", f.alice, long, "tcp/2300")
		from := net.JoinHostPort(f.alice, "40000")
		client := lab.Value(s.dial(from, f.gateway, "2300"))(t)
		server := accept(client)
		s.speaks(server, client)
		s.mute(s.client)
		s.mute(s.gw)
		for _, c := range []net.Conn{client, server} {
			s.must(c.(*net.TCPConn).SetLinger(0))
			s.must(c.Close())
		}
		if c, err := s.attempt(from, f.gateway, "2300", silence); err == nil {
			c.Close()
			t.Error("a second connection from the same port got in")
		}
	})
}

// TestOnceUnderFlood: while connections come all the time and the guard is granted, reloaded and put back, no more get
// in than there were knocks.
func TestOnceUnderFlood(t *testing.T) {
	for _, f := range bothFamilies {
		t.Run(f.name, func(t *testing.T) {
			s := guarded(t, both(once("tcp/2300"), func(c *Config) { c.Closed = Reject }))
			var in atomic.Int32
			s.accepts(":2300", &in)
			var stops []func()
			for range 2 {
				stops = append(stops, lab.Repeat(func() {
					if c, err := lab.Dial(s.client, f.alice, net.JoinHostPort(f.gateway, "2300"), silence); err == nil {
						c.(*net.TCPConn).SetLinger(0)
						c.Close()
					}
				}))
			}
			knocks := int32(0)
			for i := range raceRounds() / 5 {
				client := []string{"alice", "bob"}[i%2]
				g := sshGrant(client, f.alice, long)
				g.Ports = rangesOf("tcp/2300")
				knocks++
				s.must(s.Grant(s.Context(), []Grant{g}, time.Now()))
				switch i % 10 {
				case 3:
					s.becomes(func(c *Config) { c.TPROXY = !c.TPROXY })
				case 6:
					s.must(s.gw.Do(func() error { return s.putBack(time.Now()) }))
				case 9:
					s.revoke(Match{Client: client})
				}
			}
			for _, stop := range stops {
				stop()
			}
			if n := in.Load(); n > knocks || n == 0 {
				t.Errorf("%d connections got in for %d knocks", n, knocks)
			} else {
				t.Logf("%d connections got in for %d knocks", n, knocks)
			}
		})
	}
}

// accepts counts the connections that a port of the gateway accepts.
func (s *site) accepts(addr string, n *atomic.Int32) {
	s.Helper()
	var l net.Listener
	s.must(s.gw.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	lab.Serve(s, l, func(net.Conn) { n.Add(1) })
}

// TestOnceConfirms: the connection that gets in confirms a guard that is on trial, and one that does not get in does
// not.
func TestOnceConfirms(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := newSite(t, once("tcp/22"))
		s.open()
		s.load(long)
		s.grant("alice", f.alice, long)
		s.connect(f.alice, f.gateway, "22")
		if !lab.Value(s.backend.Entered())(t) {
			t.Error("the connection does not confirm the guard")
		}
		s.open()
		s.load(long)
		s.dark(f.alice, f.gateway, "22")
		if lab.Value(s.backend.Entered())(t) {
			t.Error("a connection that was refused confirms the guard")
		}
	})
}

// TestOnceAnotherToolsMark: a tool that sets the mark of each packet's flow lets in no second one.
func TestOnceAnotherToolsMark(t *testing.T) {
	everyOnce(t, func(t *testing.T, fl *flows) {
		fl.another(func(c *nft.Conn) {
			// ct mark set 0xffffffff
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, -150,
				&expr.Immediate{Register: 1, Data: nftables.Native(0xffffffff)},
				&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})
		})
		fl.knock("alice")
		first := fl.gets1()
		fl.shut()
		fl.shut()
		first.lives()
	})
}
