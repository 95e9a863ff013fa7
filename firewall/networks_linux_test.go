package firewall

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	nft "github.com/google/nftables"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// netPlan is networks of a family that contain each other, and addresses of a client host in and outside them.
type netPlan struct {
	sides
	route     string // to all addresses
	nets      []string
	addresses []string
}

var netPlans = []netPlan{
	{bothFamilies[0], "198.51.100.0/24", []string{"198.51.100.0/24", "198.51.100.0/25", "198.51.100.0/28",
		"198.51.100.64/26", "198.51.100.9/32", "198.51.100.200/32"},
		[]string{"198.51.100.9", "198.51.100.20", "198.51.100.70", "198.51.100.200"}},
	{bothFamilies[1], "2001:db8:100::/48", []string{"2001:db8:100::/48", "2001:db8:100::/56", "2001:db8:100:40::/60",
		"2001:db8:100:41::/64", "2001:db8:100:41::9/128", "2001:db8:100:f000::/64"},
		[]string{"2001:db8:100:1::9", "2001:db8:100:41::9", "2001:db8:100:4f::9", "2001:db8:100:f000::9"}},
}

// everyNetPlan runs a test over each backend and family, on a site whose client has all addresses of the plan.
func everyNetPlan(t *testing.T, change func(*Config), do func(*site, netPlan)) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, p := range netPlans {
			t.Run(p.name, func(t *testing.T) {
				s := k.guarded(t, change)
				for _, a := range p.addresses {
					s.must(s.client.AddAddr("vc", netip.PrefixFrom(netip.MustParseAddr(a), netip.MustParseAddr(a).BitLen()).String()))
				}
				s.must(s.gw.Route(p.route, p.alice))
				do(s, p)
			})
		}
	})
}

// netGrant returns a grant of tcp/22 for a network, or for one address that is lent.
func netGrant(client, network string, last time.Duration) Grant {
	p := netip.MustParsePrefix(network)
	g := sshGrant(client, p.Addr().String(), last)
	if g.Lent = p.IsSingleIP(); !g.Lent {
		g.Bits = uint8(p.Bits())
	}
	return g
}

func (s *site) grantNet(client, network string, last time.Duration) {
	s.Helper()
	now := time.Now()
	g := netGrant(client, network, 0)
	g.Until = now.Add(last)
	s.must(s.Grant(s.Context(), []Grant{g}, now))
}

// netModel is the law of networks in a few lines: an address gets in while a grant holds it.
type netModel []Grant

func (m netModel) holds(a netip.Addr, brief bool) bool {
	return slices.ContainsFunc(m, func(g Grant) bool {
		return g.Network().Contains(a) && (g.Service == "brief") == brief
	})
}

func (m netModel) without(gone func(Grant) bool) netModel {
	return slices.DeleteFunc(slices.Clone(m), gone)
}

// TestLawNetworks: whatever grants begin, end, are closed or revoked, over a restart of the daemon and flushes by
// another tool, sockets get packets from exactly the addresses that a live grant holds.
func TestLawNetworks(t *testing.T) {
	everyNetPlan(t, nil, func(s *site, p netPlan) {
		seed := uint64(7)
		if more, err := strconv.ParseUint(os.Getenv("SALLYPORT_SEED"), 10, 64); err == nil {
			seed = more
		}
		s.Log("SALLYPORT_SEED", seed)
		l := &netLaw{site: s, plan: p, rand: rand.New(rand.NewPCG(seed, 1)), stop: s.watchUntil()}
		defer func() { l.stop() }()
		for range 16 {
			did := l.step()
			l.steps = append(l.steps, did)
			l.check()
		}
	})
}

type netLaw struct {
	*site
	plan  netPlan
	rand  *rand.Rand
	model netModel
	stop  func()
	steps []string
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// step does something at random, here and in the model.
func (l *netLaw) step() string {
	client, network := pick(l.rand, []string{"alice", "bob", "carol"}), pick(l.rand, l.plan.nets)
	address := netip.MustParseAddr(pick(l.rand, l.plan.addresses))
	holds := func(g Grant) bool { return g.Network().Contains(address) }
	switch l.rand.IntN(10) {
	case 0, 1, 2, 3:
		l.add(netGrant(client, network, long))
		return "grant " + client + " " + network
	case 4:
		g := netGrant(client, network, time.Second)
		g.Service = "brief"
		l.add(g)
		return "brief grant " + client + " " + network
	case 5:
		lab.Eventually(l, "the end of brief grants", func() bool {
			return !slices.ContainsFunc(l.Grants(time.Now()), func(g Grant) bool { return g.Service == "brief" })
		})
		l.model = l.model.without(func(g Grant) bool { return g.Service == "brief" })
		return "wait"
	case 6:
		l.revoke(Match{Client: client, Source: address})
		l.model = l.model.without(func(g Grant) bool { return g.Client == client && holds(g) })
		return "close " + client + " " + address.String()
	case 7:
		l.revoke(Match{Source: address})
		l.model = l.model.without(holds)
		return "revoke " + address.String()
	case 8:
		l.stop()
		l.open()
		l.load(0)
		l.stop = l.watchUntil()
		return "restart"
	}
	l.flushRuleset()
	return "flush"
}

func (l *netLaw) add(g Grant) {
	l.Helper()
	l.must(l.Grant(l.Context(), []Grant{g}, time.Now()))
	l.model = append(l.model.without(func(o Grant) bool {
		return o.Client == g.Client && o.Service == g.Service && o.Peer() == g.Peer()
	}), g)
}

// check compares what sockets get with the model. Where only a brief grant holds an address, either is right.
func (l *netLaw) check() {
	l.Helper()
	var all sync.WaitGroup
	for _, text := range l.plan.addresses {
		a := netip.MustParseAddr(text)
		want := l.model.holds(a, false)
		if !want && l.model.holds(a, true) {
			continue
		}
		all.Go(func() {
			lab.Eventually(l, fmt.Sprintf("%s in: %v, after %q", a, want, l.steps), func() bool {
				return l.isOpen(text, l.plan.gateway, "22") == want
			})
		})
	}
	all.Wait()
}

// TestNetworksEndEachOnTime: of three grants, each in the one before, none ends with another.
func TestNetworksEndEachOnTime(t *testing.T) {
	everyNetPlan(t, nil, func(s *site, p netPlan) {
		defer s.watchUntil()()
		first, last := p.addresses[0], p.addresses[3]
		s.grantNet("bob", p.nets[1], long)
		s.grantNet("alice", p.nets[0], time.Second)
		s.grantNet("carol", p.nets[2], 2*time.Second)
		inTime(s.T, time.Second, func(within time.Duration) bool {
			s.grantNet("alice", p.nets[0], within)
			return s.isOpen(last, p.gateway, "22")
		})
		lab.Eventually(s, "the end of the widest", func() bool { return !s.isOpen(last, p.gateway, "22") })
		lab.Eventually(s, "the end of the narrowest", func() bool { return len(s.Grants(time.Now())) == 1 })
		s.connect(first, p.gateway, "22")
		s.revoke(Match{Client: "bob"})
		s.dark(first, p.gateway, "22")
	})
}

// TestNetworkCut: sessions of all addresses of a network end with its grant where that is configured, but not those
// that another grant holds.
func TestNetworkCut(t *testing.T) {
	everyNetPlan(t, func(c *Config) { c.Cut = c.Guarded }, func(s *site, p netPlan) {
		defer s.watchUntil()()
		s.grantNet("alice", p.nets[0], long)
		s.grant("bob", p.addresses[0], long)
		stays, goes := s.connect(p.addresses[0], p.gateway, "22"), s.connect(p.addresses[3], p.gateway, "22")
		gs := s.revoke(Match{Source: netip.MustParseAddr(p.addresses[3])})
		if len(gs) != 1 || gs[0].Peer().String() != p.nets[0] {
			s.Fatalf("revoked %v, want the grant of the whole network", gs)
		}
		s.dead(goes)
		s.echoes(stays)
		s.must(s.gw.Do(func() error {
			n, err := s.Cut(s.Context(), gs)
			if err == nil && n != 1 {
				err = fmt.Errorf("cut %d sessions, want the one without another grant", n)
			}
			return err
		}))
		s.echoes(stays)
	})
}

// TestNetworkSessionsContinue: a session outlives its grant, and an address of the network that had none stays out.
func TestNetworkSessionsContinue(t *testing.T) {
	everyNetPlan(t, nil, func(s *site, p netPlan) {
		s.grantNet("alice", p.nets[0], long)
		c := s.connect(p.addresses[3], p.gateway, "22")
		s.revoke(Match{Client: "alice"})
		s.echoes(c)
		s.dark(p.addresses[0], p.gateway, "22")
	})
}

// TestNetworkAtATarget: a grant for a network reaches the destination that it names and no other, and one that names
// none does not reach it.
func TestNetworkAtATarget(t *testing.T) {
	everyNetPlan(t, func(c *Config) {
		c.Guarded = append(c.Guarded, ports("tcp/2222"))
		c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
			Ports: []service.Ports{{Proto: service.TCP, Low: 2222, High: 2222}}}}
	}, func(s *site, p netPlan) {
		s.serve(":2222")
		g := netGrant("alice", p.nets[0], long)
		g.To, g.Ports = []netip.Addr{netip.MustParseAddr(p.gateway)}, []service.Ports{ports("tcp/2222")}
		s.must(s.Grant(s.Context(), []Grant{g}, time.Now()))
		s.connect(p.addresses[3], p.gateway, "2222")
		s.dark(p.alice, p.gateway, "2222")
		s.dark(p.addresses[3], p.gateway, "22")
		s.revoke(Match{Client: "alice"})
		s.dark(p.addresses[3], p.gateway, "2222")
		g.To = nil
		s.must(s.Grant(s.Context(), []Grant{g}, time.Now()))
		s.dark(p.addresses[3], p.gateway, "2222")
		other := map[bool]string{true: "203.0.113.1", false: "2001:db8:f::1"}[p.name == "IPv4"]
		s.must(s.gw.AddAddr("vs", hostPrefix(other)))
		s.must(s.client.Route(hostPrefix(other), p.gateway))
		s.connect(p.addresses[3], other, "2222")
	})
}

// TestNetworkByAPublishedPort: a network's grant for a machine opens the port that another tool's DNAT leads there to
// that network alone.
func TestNetworkByAPublishedPort(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		machine := []netip.Addr{netip.MustParseAddr(innerAddr[f.name])}
		s := k.guarded(t, func(c *Config) { c.Targets = []Target{{Addresses: machine, Ports: rangesOf("tcp/22")}} })
		s.inner()
		s.publish(f)
		network, inside := "203.0.113.0/24", "203.0.113.9"
		if f.name == "IPv6" {
			network, inside = "2001:db8:40::/64", "2001:db8:40::9"
		}
		s.must(s.client.AddAddr("vc", hostPrefix(inside)))
		s.must(s.gw.Route(network, f.alice))
		g := netGrant("alice", network, long)
		g.To = machine
		s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
		s.connect(inside, f.gateway, "2222")
		s.dark(f.stranger, f.gateway, "2222")
		s.dark(f.stranger, innerAddr[f.name], "22")
	})
}

// hostPrefix returns the network of an address alone.
func hostPrefix(a string) string {
	addr := netip.MustParseAddr(a)
	return netip.PrefixFrom(addr, addr.BitLen()).String()
}

// TestNetworkOfTheGateway: no grant lets in an address of the gateway, nor one that it gets later.
func TestNetworkOfTheGateway(t *testing.T) {
	for _, listed := range []bool{false, true} {
		name := map[bool]string{false: "here", true: "at a target"}[listed]
		t.Run(name, func(t *testing.T) { networkOfTheGateway(t, listed) })
	}
}

func networkOfTheGateway(t *testing.T, listed bool) {
	t.Helper()
	everyNetPlan(t, func(c *Config) {
		c.Guarded = []service.Ports{ports("udp/2222")}
		if listed {
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
				Ports: c.Guarded}}
		}
	}, func(s *site, p netPlan) {
		for _, own := range []string{"192.0.2.0/24", "192.0.2.1/32", "2001:db8::/64", "2001:db8::1/128"} {
			err := s.Grant(s.Context(), []Grant{netGrant("alice", own, long)}, time.Now())
			if !errors.Is(err, ErrOwn) {
				s.Errorf("got %v for %s, want ErrOwn", err, own)
			}
		}
		g := netGrant("alice", p.nets[0], long)
		g.Ports = []service.Ports{ports("udp/2222")}
		if listed {
			g.To = []netip.Addr{netip.MustParseAddr(p.gateway)}
		}
		s.must(s.Grant(s.Context(), []Grant{g}, time.Now()))
		server := s.udp(s.gw, "[::]:2222")
		to := netip.AddrPortFrom(netip.MustParseAddr(p.gateway), 2222).String()
		from := func() *net.UDPConn {
			return s.udp(s.client, netip.AddrPortFrom(netip.MustParseAddr(p.addresses[3]), 0).String())
		}
		s.send(from(), to)
		if !s.gets(server, lab.Patience) {
			s.Fatal("the network is not let in")
		}
		s.must(s.gw.AddAddr("vs", hostPrefix(p.addresses[3])))
		lab.Eventually(s, "the gateway's own address to be shut out", func() bool { // once its local route is there
			s.send(from(), to)
			return !s.gets(server, silence)
		})
	})
}

// TestNoRulesForNetworks: a guard without grants for networks has no rule that looks for one.
func TestNoRulesForNetworks(t *testing.T) {
	s := guarded(t, nil)
	count := func() int { return len(s.rulesOfDoor()) }
	before := count()
	s.grant("alice", "192.0.2.2", long)
	if n := count(); n != before {
		t.Errorf("%d rules after a grant for an address, want %d", n, before)
	}
	s.grantNet("alice", "198.51.100.0/24", long)
	if n := count(); n <= before {
		t.Errorf("%d rules after a grant for a network, want more than %d", n, before)
	}
	s.revoke(Match{Client: "alice"})
	s.load(0)
	if n := count(); n != before {
		t.Errorf("%d rules after the next load, want %d", n, before)
	}
}

// TestNetworkConfirms: a flow from a network confirms a guard on trial, and the first grant for a network does not lose
// one that did.
func TestNetworkConfirms(t *testing.T) {
	everyNetPlan(t, nil, func(s *site, p netPlan) {
		for _, first := range []bool{true, false} {
			s.load(long)
			if first {
				s.grantNet("alice", p.nets[0], long)
				s.connect(p.addresses[3], p.gateway, "22")
			} else {
				s.grant("bob", p.alice, long)
				s.connect(p.alice, p.gateway, "22")
				s.grantNet("alice", p.nets[1], long)
			}
			stop := s.watchUntil()
			lab.Eventually(s, "the confirmation", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.state.confirmBy.IsZero()
			})
			stop()
		}
	})
}

// TestNetworkReconfigured: a grant for a network stays while the guard gets other ports, and ends where its port is no
// longer guarded.
func TestNetworkReconfigured(t *testing.T) {
	everyNetPlan(t, nil, func(s *site, p netPlan) {
		s.grantNet("alice", p.nets[0], long)
		c := s.config
		c.Guarded = append([]service.Ports{ports("tcp/80")}, c.Guarded...)
		s.must(s.Reconfigure(s.Context(), c, time.Now()))
		s.connect(p.addresses[3], p.gateway, "22")
		s.dark(p.alice, p.gateway, "22")
		c.Guarded = c.Guarded[:1]
		s.must(s.Reconfigure(s.Context(), c, time.Now()))
		if gs := s.Grants(time.Now()); len(gs) != 0 {
			s.Errorf("%v are left", gs)
		}
	})
}

// TestNetworksThatNobodyGets: a grant for such a network is an error, whoever asks.
func TestNetworksThatNobodyGets(t *testing.T) {
	s := guarded(t, nil)
	for _, network := range []string{"0.0.0.0/0", "128.0.0.0/1", "127.0.0.0/24", "169.254.1.0/24", "224.0.0.0/24", "::/0",
		"2001::/16", "fe80::/64", "ff02::/64", "::ffff:192.0.2.0/120", "2001:db8:1::/80"} {
		p := netip.MustParsePrefix(network)
		g := sshGrant("alice", p.Addr().String(), long)
		g.Bits, g.Lent = uint8(p.Bits()), true
		if err := s.Grant(t.Context(), []Grant{g}, time.Now()); err == nil {
			t.Errorf("granted %s", network)
		}
	}
	g := netGrant("alice", "198.51.100.0/24", long)
	g.Source = netip.MustParseAddr("198.51.100.7")
	if err := s.Grant(t.Context(), []Grant{g}, time.Now()); err == nil {
		t.Error("granted a network with bits outside its mask")
	}
	if n := len(s.Grants(time.Now())); n != 0 {
		t.Errorf("%d grants are left", n)
	}
}

// rulesOfDoor returns the rules of the chain that looks for grants.
func (s *site) rulesOfDoor() []*nft.Rule {
	s.Helper()
	var rules []*nft.Rule
	o := nftables.NewObjects(0)
	s.another(func(c *nft.Conn) {
		var err error
		rules, err = c.GetRules(o.Table, &nft.Chain{Name: "door", Table: o.Table})
		s.must(err)
	})
	return rules
}

// TestExpectNetworks: with iptables the guard is ready for grants for networks from the load on, or once it should be,
// so that the first one changes no rule. Without that it has no rules for them.
func TestExpectNetworks(t *testing.T) {
	iptablesOnly(t, func(t *testing.T, k kind) {
		s := k.guarded(t, nil)
		rules := func() string {
			return s.program("iptables-save", "-t", "mangle") + s.program("ip6tables-save", "-t", "mangle")
		}
		looks := func() bool { return strings.Contains(rules(), "spa-nets") }
		if looks() {
			t.Error("the guard looks for networks, and no client may let one in")
		}
		s.must(s.ExpectNetworks(t.Context(), time.Now()))
		for _, when := range []string{"once it should be", "from the load on"} {
			if !looks() {
				t.Errorf("the guard is not ready %s", when)
			}
			before := s.backend.(*iptables.Backend).Helper
			s.backend.(*iptables.Backend).Helper = nil // a load would panic
			s.grantNet("alice", "198.51.100.0/24", long)
			s.grantNet("alice", "2001:db8:1::/48", long)
			s.backend.(*iptables.Backend).Helper = before
			s.revoke(Match{})
			s.becomes(guarding("tcp/80"))
			if !looks() {
				t.Errorf("after a reload the guard is no longer ready")
			}
			s.config.Networks = true
			s.open()
			s.load(0)
		}
	})
}

// TestFirstOfWidth: the first grant for a network of a width does not load the guard anew, which takes long beside many
// grants: an element that only the kernel knows is still there.
func TestFirstOfWidth(t *testing.T) {
	for _, trial := range []time.Duration{0, long} {
		everyNetPlan(t, nil, func(s *site, p netPlan) {
			s.load(trial)
			stray := guard.Element{Source: netip.MustParseAddr(p.alice), Proto: service.TCP, Port: 22}
			s.must(s.backend.Set([]guard.Lease{{Element: stray, Until: time.Now().Add(long)}}))
			for _, network := range []string{p.nets[0], p.nets[1], p.nets[5]} {
				s.grantNet("alice", network, long)
				if !s.isOpen(p.alice, p.gateway, "22") {
					s.Fatalf("the grant of %s loaded the whole guard", network)
				}
			}
			s.connect(p.addresses[3], p.gateway, "22")
			s.dark(p.stranger, p.gateway, "22")
		})
	}
}
