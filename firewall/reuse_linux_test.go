package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
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

// TestSourcePortOfAnOldSession: for connection tracking, a bare SYN belongs to the entry of the flow that had its
// addresses and ports before, with our mark.
func TestSourcePortOfAnOldSession(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		for _, end := range []string{"reset by the server", "forgotten by both", "forgotten, by a port that leads there"} {
			t.Run(end, func(t *testing.T) {
				port := "2300"
				if strings.HasSuffix(end, "leads there") {
					port = "2301"
				}
				s := k.guarded(t, guarding("tcp/2300"))
				accept := s.listen(":2300")
				s.nft("table inet leads { chain c { type nat hook prerouting priority -100; tcp dport 2301 redirect to :2300; }; }")
				s.grantPorts("one", f.alice, long, "tcp/2300")
				from := net.JoinHostPort(f.alice, "4000")
				client := lab.Value(s.dial(from, f.gateway, port))(s)
				server := accept(client)
				s.shorten(Match{}, 500*time.Millisecond)
				lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen(f.alice, f.gateway, port) })
				if end != "reset by the server" {
					s.mute(s.client)
					s.mute(s.gw)
				}
				s.must(server.(*net.TCPConn).SetLinger(0))
				s.must(server.Close())
				if end == "reset by the server" {
					if hears(client, lab.Patience) {
						t.Fatal("the server sent something")
					}
				}
				s.must(client.(*net.TCPConn).SetLinger(0))
				s.must(client.Close())
				s.dark(from, f.gateway, port)
			})
		}
	})
}

// TestSessionsOfAPortThatIsLedAway: the guard decides on sessions that another tool's DNAT leads from a guarded port to
// a machine as on those with programs here: one from a time without the guard dies, one that a grant admitted outlives
// it, and the port from which that came admits no other. Where sessions end with their grants, these do too.
func TestSessionsOfAPortThatIsLedAway(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) { sessionsOfAPortThatIsLedAway(t, k, f, guarding) })
	everywhere(t, func(t *testing.T, k kind, f sides) { sessionsOfAPortThatIsLedAway(t, k, f, cutting) })
	everyFamily(t, func(t *testing.T, f sides) {
		sessionsOfAPortThatIsLedAway(t, kinds()[0], f, func(ranges ...string) func(*Config) {
			return both(cutting(ranges...), once(ranges...))
		})
	})
}

func sessionsOfAPortThatIsLedAway(t *testing.T, k kind, f sides, guards func(...string) func(*Config)) {
	t.Helper()
	s := k.guarded(t, both(guards("tcp/2222", "udp/2222"), func(c *Config) { c.Trusted = []string{"elsewhere"} }))
	inner := s.behind()
	accept, server := s.listenOn(inner, ":22"), s.udp(inner, "[::]:22")
	s.flushRuleset()
	s.nft(fmt.Sprintf("table inet leads { chain c { type nat hook prerouting priority -100; meta l4proto { tcp, udp } "+
		"th dport 2222 dnat %s to %s; }; }", map[string]string{"IPv4": "ip", "IPv6": "ip6"}[f.name],
		net.JoinHostPort(innerAddr[f.name], "22")))
	to := net.JoinHostPort(f.gateway, "2222")
	asks := func(c *net.UDPConn, want bool) {
		t.Helper()
		s.send(c, to)
		within := map[bool]time.Duration{true: lab.Patience, false: silence}[want]
		if got := s.gets(server, within); got != want {
			t.Errorf("a datagram from %v arrives: %v, want %v", c.LocalAddr(), got, want)
		}
		server.WriteTo([]byte("hello"), c.LocalAddr())
		if got := s.gets(c, within); got != want && k.programs == "" { // see goesOut
			t.Errorf("a datagram to %v arrives: %v, want %v", c.LocalAddr(), got, want)
		}
	}
	gap, theirs := s.talk(accept, f.stranger, f.gateway, "2222"), s.udp(s.client, net.JoinHostPort(f.stranger, "4000"))
	asks(theirs, true)
	s.load(0)
	ended := func(v session) {
		t.Helper()
		if k.programs == "" {
			s.mutual(v, false)
		} else if v.client.Write([]byte("news")); hears(v.server, silence) {
			t.Error("the server hears its client")
		}
	}
	ended(gap)
	asks(theirs, false)

	from := net.JoinHostPort(f.alice, "4000")
	s.grantPorts("led", f.alice, long, "tcp/2222", "udp/2222")
	v, alice := s.talk(accept, from, f.gateway, "2222"), s.udp(s.client, from)
	asks(alice, true)
	s.revoke(Match{})
	if len(s.config.Cut) > 0 {
		ended(v)
		asks(alice, false)
		return
	}
	s.mutual(v, true)
	asks(alice, true)
	s.mute(s.client)
	s.mute(inner)
	for _, c := range []net.Conn{v.client, v.server} {
		s.must(c.(*net.TCPConn).SetLinger(0))
		s.must(c.Close())
	}
	s.dark(from, f.gateway, "2222")
}

// mute keeps a host from ending a connection towards the other.
func (s *site) mute(h *lab.Host) {
	s.Helper()
	s.anotherOn(h, func(c *nft.Conn) {
		table := c.AddTable(&nft.Table{Name: "mute", Family: nft.TableFamilyINet})
		chain := c.AddChain(nftables.Hooked(&nft.Chain{Table: table, Name: "mute"}, nft.ChainHookOutput, -400))
		for _, flag := range []byte{nftables.Fin, nftables.Rst} {
			c.AddRule(&nft.Rule{Table: table, Chain: chain,
				Exprs: nftables.Rule(nftables.TCPFlags(flag, flag), nftables.Drop()).Exprs})
		}
	})
}

// TestOwnFlowToAFormerClient: a client whose grant has ended is a host like any other to connections that begin here.
func TestOwnFlowToAFormerClient(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, guarding("tcp/2200"))
		s.grantPorts("one", f.alice, long, "tcp/2200")
		if _, err := s.attempt(f.alice, f.gateway, "2200", lab.Patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("got %v, want a refused connection", err)
		}
		s.revoke(Match{})
		echo := lab.Value(lab.EchoServer(s.client, net.JoinHostPort(f.alice, "7000")))(t)
		defer echo.Close()
		from, to := net.JoinHostPort(f.gateway, "2200"), net.JoinHostPort(f.alice, "7000")
		c := lab.Value(lab.Dial(s.gw, from, to, lab.Patience))(t)
		defer c.Close()
		s.echoes(c)
	})
}

// TestUntracked: another table may keep all ports out of connection tracking, where no flow has a mark.
func TestUntracked(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, nil)
		s.another(func(c *nft.Conn) {
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, -300, &expr.Notrack{})
			table := c.AddTable(&nft.Table{Name: "another too", Family: nft.TableFamilyINet})
			chain := c.AddChain(nftables.Hooked(&nft.Chain{Table: table, Name: "out"}, nft.ChainHookOutput, -300))
			c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Notrack{}}})
		})
		s.grant("alice", f.alice, long)
		s.connect(f.alice, f.gateway, "22")
		s.dark(f.stranger, f.gateway, "22")
		s.serve(":2400")
		for _, port := range []string{"1024", "2816"} { // in an ICMP message, this would be the type of an error
			s.connect(net.JoinHostPort(f.stranger, port), f.gateway, "2400")
		}
	})
}

// TestUntrackedPing: an ICMP message that is not an error does not concern a guarded port, whether it is tracked or
// not.
func TestUntrackedPing(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		s.another(func(c *nft.Conn) {
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, -300, &expr.Notrack{})
		})
		for _, f := range []struct {
			network, from, to string
			request, reply    byte
		}{{"ip4:icmp", "192.0.2.2", "192.0.2.1", 8, 0}, {"ip6:ipv6-icmp", "2001:db8::2", "2001:db8::1", 128, 129}} {
			var c net.PacketConn
			s.must(s.client.Do(func() (err error) { c, err = net.ListenPacket(f.network, f.from); return err }))
			defer c.Close()
			message := []byte{f.request, 0, 0, 0, 0, 1, 0, 1, 'p', 'i', 'n', 'g'}
			if f.request == 8 {
				binary.BigEndian.PutUint16(message[2:], inetSum(message))
			}
			_, err := c.WriteTo(message, &net.IPAddr{IP: net.ParseIP(f.to)})
			s.must(err)
			s.must(c.SetReadDeadline(time.Now().Add(lab.Patience)))
			for b := make([]byte, 100); ; { // such messages also look up neighbours
				if _, _, err := c.ReadFrom(b); err != nil {
					t.Errorf("%s: %v", f.network, err)
					break
				}
				if b[0] == f.reply {
					break
				}
			}
		}
	})
}

// TestUDPSessionOutlivesGrant: UDP has no SYN, and a flow that continues is the same flow.
func TestUDPSessionOutlivesGrant(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, guarding("udp/5000"))
		server, alice := s.udp(s.gw, "192.0.2.1:5000"), s.udp(s.client, "192.0.2.2:4000")
		s.grantPorts("one", "192.0.2.2", long, "udp/5000")
		s.exchange(alice, server)
		s.shorten(Match{}, 500*time.Millisecond)
		other := s.udp(s.client, "192.0.2.2:4001")
		lab.Eventually(t, "the grant's end", func() bool {
			s.send(other, "192.0.2.1:5000")
			return !s.gets(server, silence)
		})
		s.exchange(alice, server)
	})
}

// TestExpectedFlow: a flow that a helper of connection tracking expects needs a grant like any other. The content of
// a session must not open a port.
func TestExpectedFlow(t *testing.T) {
	s := guarded(t, guarding("tcp/2100", "tcp/2400"))
	s.helpFTP(2100)
	accept := s.listen("192.0.2.1:2100")
	s.serve(":2400")
	s.grantPorts("one", "192.0.2.2", long, "tcp/2100")
	client, err := s.dial("192.0.2.2", "192.0.2.1", "2100")
	s.must(err)
	defer client.Close()
	server := accept(client)
	s.shorten(Match{}, 500*time.Millisecond)
	lab.Eventually(t, "the grant's end", func() bool { return !s.isOpen("192.0.2.2", "192.0.2.1", "2100") })
	s.dark("192.0.2.2", "192.0.2.1", "2400")
	for _, line := range []string{"220 hello\r\n", "227 Entering Passive Mode (192,0,2,1,9,96)\r\n"} { // 9*256+96 is 2400
		_, err = server.Write([]byte(line))
		s.must(err)
		s.must(client.SetReadDeadline(time.Now().Add(lab.Patience)))
		_, err = io.ReadFull(client, make([]byte, len(line)))
		s.must(err)
	}
	s.dark("192.0.2.2", "192.0.2.1", "2400")
	s.dark("192.0.2.3", "192.0.2.1", "2400")
	s.grantPorts("two", "192.0.2.2", long, "tcp/2400")
	s.connect("192.0.2.2", "192.0.2.1", "2400")
	// A port that is not guarded, and to which the host admits only what the session announces.
	s.serve(":2401")
	s.nft("table inet host { chain c { type filter hook input priority 0; tcp dport 2401 ct state new drop; }; }")
	_, err = server.Write([]byte("227 Entering Passive Mode (192,0,2,1,9,97)\r\n"))
	s.must(err)
	s.must(client.SetReadDeadline(time.Now().Add(lab.Patience)))
	_, err = io.ReadFull(client, make([]byte, 10))
	s.must(err)
	s.connect("192.0.2.2:1024", "192.0.2.1", "2401")
}

// helpFTP makes the kernel follow FTP on a port.
func (s *site) helpFTP(number uint16) {
	s.Helper()
	err := s.gw.Do(func() error {
		c, err := nft.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nft.Table{Name: "help", Family: nft.TableFamilyINet})
		c.AddObj(&nft.NamedObj{
			Table: table, Name: "ftp", Type: nft.ObjTypeCtHelper,
			Obj: &expr.CtHelper{Name: "ftp", L3Proto: unix.NFPROTO_IPV4, L4Proto: unix.IPPROTO_TCP},
		})
		chain := c.AddChain(nftables.Hooked(&nft.Chain{Table: table, Name: "help"}, nft.ChainHookPrerouting, -150))
		// tcp dport NUMBER ct helper set "ftp"
		c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: nftables.Rule(nftables.L4Proto(service.TCP), nftables.Raw(
			nftables.Port(nftables.Register, nftables.Dport), nftables.Equal(binary.BigEndian.AppendUint16(nil, number)),
			&expr.Objref{Type: int(nft.ObjTypeCtHelper), Name: "ftp"},
		)).Exprs})
		return c.Flush()
	})
	if err != nil {
		lab.KernelLacks(s, "nf_conntrack_ftp")
	}
}
