package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// once makes ports ones at which a grant admits one flow.
func once(ranges ...string) func(*Config) {
	return func(c *Config) {
		for _, r := range ranges {
			if !slices.Contains(c.Guarded, ports(r)) {
				c.Guarded = append(c.Guarded, ports(r))
			}
			c.Once = append(c.Once, ports(r))
		}
	}
}

// both applies changes one after the other.
func both(changes ...func(*Config)) func(*Config) {
	return func(c *Config) {
		for _, change := range changes {
			change(c)
		}
	}
}

// flows opens flows to a port of the gateway, by TCP or UDP.
type flows struct {
	*site
	proto service.Proto
	sides
	port   string
	server *net.UDPConn
}

func (s *site) flows(proto service.Proto, f sides) *flows {
	fl := &flows{site: s, proto: proto, sides: f, port: "22"}
	if proto == service.UDP {
		fl.port = "5000"
		fl.server = s.udp(s.gw, "[::]:5000")
	}
	return fl
}

// flow is a flow that got in, or did not.
type flow struct {
	*flows
	tcp net.Conn
	udp *net.UDPConn
}

// begin begins a flow from another port of alice's address.
func (fl *flows) begin() (*flow, error) {
	fl.Helper()
	if fl.proto == service.TCP {
		c, err := fl.attempt(fl.alice, fl.gateway, fl.port, 2*silence)
		if err == nil {
			fl.Cleanup(func() { c.Close() })
		}
		return &flow{flows: fl, tcp: c}, err
	}
	v := &flow{flows: fl, udp: fl.udp(fl.client, net.JoinHostPort(fl.alice, "0"))}
	if !v.arrives() {
		return v, errSilence
	}
	return v, nil
}

// arrives reports whether a datagram of the flow arrives.
func (v *flow) arrives() bool {
	v.Helper()
	v.send(v.udp, net.JoinHostPort(v.gateway, v.port))
	return v.gets(v.server, 2*silence)
}

func (fl *flows) gets1() *flow {
	fl.Helper()
	v, err := fl.begin()
	if err != nil {
		fl.Fatalf("got %v, want a flow", err)
	}
	v.lives()
	return v
}

// lives checks that the flow goes on, both ways.
func (v *flow) lives() {
	v.Helper()
	if v.tcp != nil {
		v.echoes(v.tcp)
		return
	}
	for range 2 {
		if !v.arrives() {
			v.Fatal("a datagram of the admitted flow was lost")
		}
	}
	v.send(v.server, v.udp.LocalAddr().String())
	if !v.gets(v.udp, lab.Patience) {
		v.Fatal("an answer in the admitted flow was lost")
	}
	if !v.arrives() {
		v.Fatal("a datagram after the answer was lost")
	}
}

// shut checks that another flow is treated as a stranger's.
func (fl *flows) shut() {
	fl.Helper()
	_, err := fl.begin()
	switch rejects := fl.config.Closed == Reject && fl.proto == service.TCP; {
	case err == nil:
		fl.Fatal("one more flow got in")
	case len(fl.config.Once) == 0: // what other ports answer is not the subject here
	case rejects != errors.Is(err, syscall.ECONNREFUSED):
		fl.Fatalf("got %v, want a stranger's answer", err)
	}
}

func (fl *flows) knock(client string) {
	fl.Helper()
	now := time.Now()
	g := sshGrant(client, fl.alice, long)
	g.Ports = rangesOf(fmt.Sprintf("%v/%s", fl.proto, fl.port))
	fl.must(fl.Grant(fl.Context(), []Grant{g}, now))
}

// everyOnce runs a test over families, protocols, what closed ports do, and what happens to sessions.
func everyOnce(t *testing.T, do func(*testing.T, *flows)) {
	t.Helper()
	for i := range 4 {
		everyFamily(t, func(t *testing.T, f sides) {
			for _, proto := range []service.Proto{service.TCP, service.UDP} {
				onceCase(t, proto, f, Closed(i%2), i >= 2, do)
			}
		})
	}
}

// someOnce is everyOnce with each value twice only.
func someOnce(t *testing.T, do func(*testing.T, *flows)) {
	t.Helper()
	for i, f := range bothFamilies {
		for j, proto := range []service.Proto{service.TCP, service.UDP} {
			onceCase(t, proto, f, Closed((i+j)%2), (i+j)%2 == 0, do)
		}
	}
}

func onceCase(t *testing.T, proto service.Proto, f sides, closed Closed, cuts bool, do func(*testing.T, *flows)) {
	t.Helper()
	t.Run(fmt.Sprintf("%s/%v/closed=%d/cut=%v", f.name, proto, closed, cuts), func(t *testing.T) {
		t.Parallel()
		s := guarded(t, both(once("tcp/22", "udp/5000"), func(c *Config) {
			c.Closed = closed
			if cuts {
				c.Cut = c.Once
			}
		}))
		do(t, s.flows(proto, f))
	})
}

// TestOnce: the first flow takes the grant with it, a new knock gives another, and what was admitted goes on.
func TestOnce(t *testing.T) {
	everyOnce(t, func(t *testing.T, fl *flows) {
		fl.shut()
		fl.knock("alice")
		first := fl.gets1()
		fl.shut()
		fl.shut()
		first.lives()
		fl.knock("alice")
		second := fl.gets1()
		fl.shut()
		first.lives()
		second.lives()
		fl.knock("alice") // not taken
		fl.revoke(Match{Client: "alice"})
		fl.shut()
	})
}

// TestOnceTwoClients: two clients at one address have a flow each, and a grant that ends takes its own away.
func TestOnceTwoClients(t *testing.T) {
	everyOnce(t, func(t *testing.T, fl *flows) {
		fl.knock("alice")
		fl.knock("bob")
		first, second := fl.gets1(), fl.gets1()
		fl.shut()
		first.lives()
		second.lives()
		fl.knock("bob") // alice's is taken
		fl.gets1()
		fl.shut()
		fl.knock("alice")
		fl.knock("bob")
		fl.revoke(Match{Client: "alice"})
		fl.gets1()
		fl.shut()
	})
}

// TestOnceSecondGrantEnds: the kernel alone ends the second client's flow with the grant that ends first.
func TestOnceSecondGrantEnds(t *testing.T) {
	s := guarded(t, once("tcp/22"))
	s.grant("alice", "192.0.2.2", long)
	s.grant("bob", "192.0.2.2", silence)
	lab.Eventually(t, "the end of bob's grant in the kernel", func() bool { return len(s.secondFlows()) == 0 })
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.dark("192.0.2.2", "192.0.2.1", "22")
}

// secondFlows lists the set of second flows.
func (s *site) secondFlows() (es []nft.SetElement) {
	s.Helper()
	s.must(s.gw.Do(func() error {
		c, err := nft.New()
		if err != nil {
			return err
		}
		set, err := c.GetSetByName(&nft.Table{Name: "spa", Family: nft.TableFamilyINet}, "more4")
		if err != nil {
			return err
		}
		es, err = c.GetSetElements(set)
		return err
	}))
	return es
}

// TestOnceStaysTaken: a grant that has admitted its flow admits no other, whatever happens to guard and daemon; what
// was admitted goes on, and a new knock opens again.
func TestOnceStaysTaken(t *testing.T) {
	for name, happens := range map[string]func(*flows){
		"reload":  func(fl *flows) { fl.becomes(func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/99")) }) },
		"restart": func(fl *flows) { fl.open(); fl.load(0) },
		"put back after a flush": func(fl *flows) {
			fl.flushRuleset()
			fl.must(fl.gw.Do(func() error { return fl.putBack(time.Now()) }))
		},
		"put back after a flush of its set": func(fl *flows) {
			fl.nft("flush set inet spa taken4; flush set inet spa taken6")
			fl.must(fl.gw.Do(func() error { return fl.putBack(time.Now()) }))
		},
		"flush before a reload": func(fl *flows) {
			fl.flushRuleset()
			fl.becomes(func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/99")) })
		},
		"another client's grant after a flush": func(fl *flows) {
			fl.flushRuleset()
			now := time.Now()
			g := sshGrant("bob", "192.0.2.77", long)
			fl.must(fl.gw.Do(func() error { return fl.Grant(fl.Context(), []Grant{g}, now) }))
		},
		"its setting is removed":               func(fl *flows) { fl.becomes(func(c *Config) { c.Once = nil }) },
		"its setting is removed, then restart": func(fl *flows) { fl.config.Once = nil; fl.open(); fl.load(0) },
	} {
		t.Run(name, func(t *testing.T) {
			someOnce(t, func(t *testing.T, fl *flows) {
				fl.knock("alice")
				first := fl.gets1()
				cut := len(fl.config.Cut) > 0 && len(fl.config.Once) > 0
				happens(fl)
				fl.shut()
				if len(fl.config.Once) > 0 || !cut { // a session of a port in Cut ends with its grant
					first.lives()
				}
				fl.knock("alice")
				fl.gets1()
			})
		})
	}
}

// TestOnceReload: a reload leaves a grant whose flow has not come as it is.
func TestOnceReload(t *testing.T) {
	everyOnce(t, func(t *testing.T, fl *flows) {
		fl.knock("alice")
		fl.becomes(func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/99")) })
		fl.gets1()
		fl.shut()
	})
}

// TestOnceAtTarget: it holds for services at addresses of their own too, and for what another table's DNAT leads
// there. A grant for the gateway's own port opens neither.
func TestOnceAtTarget(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := guarded(t, both(once("tcp/22"), func(c *Config) {
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(innerAddr[f.name])}, Ports: rangesOf("tcp/22")}}
		}))
		s.inner()
		s.publish(f)
		for _, way := range []struct{ to, port string }{{innerAddr[f.name], "22"}, {f.gateway, "2222"}} {
			s.must(s.Grant(s.Context(), []Grant{s.toInner("alice", f.alice, f)}, time.Now()))
			c := s.connect(f.alice, way.to, way.port)
			s.dark(f.alice, innerAddr[f.name], "22")
			s.dark(f.alice, f.gateway, "2222")
			s.dark(f.alice, f.gateway, "22")
			s.echoes(c)
		}
		s.grant("alice", f.alice, long)
		s.dark(f.alice, innerAddr[f.name], "22")
		s.dark(f.alice, f.gateway, "2222")
		s.connect(f.alice, f.gateway, "22")
	})
}

// TestOnceLinkLocal: a link-local source has its grants in a set of its own.
func TestOnceLinkLocal(t *testing.T) {
	s := guarded(t, once("tcp/22"))
	_, _, err := s.client.Interface("vc")
	s.must(err)
	s.must(s.client.AddAddr("vc", "fe80::7/64"))
	s.must(s.gw.AddAddr("vs", "fe80::8/64"))
	index, _, err := s.gw.Interface("vs")
	s.must(err)
	s.grant("alice", fmt.Sprintf("fe80::7%%%d", index), long)
	dial := func(within time.Duration) error {
		c, err := lab.Dial(s.client, "fe80::7%vc", "[fe80::8%vc]:22", within)
		if err == nil {
			s.Cleanup(func() { c.Close() })
		}
		return err
	}
	s.must(dial(lab.Patience))
	if dial(2*silence) == nil {
		t.Error("a second connection got in")
	}
}

// TestOnceGrants: Grants shows it, and another version of the ledger's code drops such a grant.
func TestOnceGrants(t *testing.T) {
	s := guarded(t, once("tcp/22"))
	s.grant("alice", "192.0.2.2", long)
	shown := func() Grant { return s.Grants(time.Now())[0] }
	if g := shown(); !g.Once || g.Taken {
		t.Errorf("got once %v, taken %v before the connection", g.Once, g.Taken)
	}
	s.connect("192.0.2.2", "192.0.2.1", "22")
	if g := shown(); !g.Once || !g.Taken {
		t.Errorf("got once %v, taken %v after the connection", g.Once, g.Taken)
	}
	g := sshGrant("alice", "192.0.2.2", service.LongestOnce+time.Hour)
	if err := s.Grant(t.Context(), []Grant{g}, time.Now()); err == nil {
		t.Error("a grant got in that outlasts what the kernel remembers")
	}
	g = netGrant("alice", "198.51.100.0/24", long)
	g.Ports = []service.Ports{ports("tcp/22")}
	if err := s.Grant(t.Context(), []Grant{g}, time.Now()); err == nil {
		t.Error("a network got in for one connection")
	}
}

// TestOnceElsewhere: what cannot admit one flow only refuses the setting.
func TestOnceElsewhere(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"iptables": func(c *Config) { c.Backend = BackendIptables },
		"admit": func(c *Config) {
			c.Mode, c.Admit = Admit, AdmitSets{Family: "inet", Table: "filter", Set4: "spa4"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, both(once("tcp/22"), change))
			err := s.gw.Do(func() error {
				fw, err := New(s.config, nil)
				if err == nil {
					fw.Close()
				}
				return err
			})
			if err == nil || !strings.Contains(err.Error(), "remove once = true") {
				t.Errorf("got %v, want an error with the setting and the remedy", err)
			}
		})
	}
}
