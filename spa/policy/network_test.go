package policy

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// randomNetwork returns a network that can be let in, among few, so that many contain each other.
func randomNetwork(r *rand.Rand) netip.Prefix {
	for {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(r.IntN(3)), byte(r.IntN(256))}), 20+r.IntN(13))
		if r.IntN(3) == 0 {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(r.IntN(2)), 0, byte(r.IntN(4)),
				15: byte(r.IntN(2))}), []int{40, 48, 56, 60, 64, 128}[r.IntN(6)])
		}
		if p = p.Masked(); service.CheckNetwork(p) == nil {
			return p
		}
	}
}

func randomClient(r *rand.Rand) keys.Client {
	some := func(most int) (list []netip.Prefix) {
		for range r.IntN(most + 1) {
			list = append(list, randomNetwork(r))
		}
		return list
	}
	c := keys.Client{Allow: []string{"ssh"}, Delegate: some(2)}
	if r.IntN(2) == 0 {
		c.Widest4, c.Widest6 = 20+r.IntN(13), 40+r.IntN(25)
	}
	if r.IntN(3) == 0 {
		c.From = some(2)
	}
	if r.IntN(3) == 0 {
		c.Deny = some(2)
	}
	return c
}

// TestLetIn: what is granted is exactly what was asked for, and no address of it is one that the client's file does not
// allow; what is refused has such an address, or is not around the sender.
func TestLetIn(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	granted := 0
	for range 20000 {
		c, n, from := randomClient(r), randomNetwork(r), randomNetwork(r).Addr().Next()
		if r.IntN(2) == 0 {
			from = n.Addr()
		}
		k := knock(c, ssh)
		k.LetIn = n
		p := newPolicy(t, nil)
		if p.Source(k, from) != nil {
			continue
		}
		gs, err := p.Authorize(k, from, now, now)
		if want := letInModel(c, n, from); want != (err == nil) {
			t.Fatalf("%+v lets in %v from %v: %v, want %v", c, n, from, err, want)
		}
		if err != nil {
			var denial *Denial
			if !errors.As(err, &denial) || denial.Reason != spa.ReasonNetwork {
				t.Fatalf("got %v, want ReasonNetwork", err)
			}
			continue
		}
		granted++
		if gs[0].Network() != n {
			t.Fatalf("granted %v, asked for %v", gs[0].Network(), n)
		}
		if !p.Keeps(k.Client, gs[0], now) {
			t.Fatalf("%+v does not keep %v, which it lets in", c, n)
		}
	}
	if granted < 1000 {
		t.Errorf("only %d were granted", granted)
	}
}

// letInModel looks at addresses: both ends of each prefix, and what is beside them, decide.
func letInModel(c keys.Client, n netip.Prefix, from netip.Addr) bool {
	in := func(list []netip.Prefix, all bool) bool { // all of n, or any of it
		for _, p := range list {
			if all && p.Contains(n.Addr()) && p.Contains(end(n)) || !all && (p.Contains(n.Addr()) || n.Contains(p.Addr())) {
				return true
			}
		}
		return false
	}
	if n.Addr() == from && end(n) == from {
		return true // Source has looked at it
	}
	widest := map[bool]int{true: c.Widest4, false: c.Widest6}[n.Addr().Is4()]
	around := n.Contains(from) && widest > 0 && n.Bits() >= widest && (len(c.From) == 0 || in(c.From, true))
	return (around || in(c.Delegate, true)) && !in(c.Deny, false)
}

// end returns the last address of a network.
func end(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// TestLentIsTaken: what a file no longer lends ends, even if its client could let in as much around its own address.
func TestLentIsTaken(t *testing.T) {
	lends := keys.Client{Allow: []string{"ssh"}, Widest4: 24,
		Delegate: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
	p := newPolicy(t, nil)
	k := knock(lends, ssh)
	k.LetIn = lends.Delegate[0]
	gs, err := p.Authorize(k, here, now, now)
	if err != nil || !gs[0].Lent || !p.Keeps(k.Client, gs[0], now) {
		t.Fatalf("%v, %v: want a grant of what was lent", gs, err)
	}
	lends.Delegate = nil
	if p.Keeps(&lends, gs[0], now) {
		t.Error("it is kept")
	}
}

// TestNarrowed: a network around a client's own address ends when its file has narrower bounds.
func TestNarrowed(t *testing.T) {
	c := keys.Client{Allow: []string{"ssh"}, Widest4: 24}
	p, k := newPolicy(t, nil), knock(c, ssh)
	k.LetIn = netip.MustParsePrefix("192.0.2.0/24")
	gs := lab.Value(p.Authorize(k, here, now, now))(t)
	for widest, want := range map[int]bool{0: false, 16: true, 24: true, 25: false} {
		c.Widest4 = widest
		if p.Keeps(&c, gs[0], now) != want {
			t.Errorf("widest4 = %d: want it to be kept: %v", widest, want)
		}
	}
}

// TestNetworkBeside: grants for the same service and different networks are different grants, counted each.
func TestNetworkBeside(t *testing.T) {
	c := keys.Client{Allow: []string{"ssh"}, Widest4: 8}
	h := held{{Client: "alice", Service: "ssh", Source: netip.MustParseAddr("192.0.2.0"), Bits: 24,
		Ports: ports(t, "tcp/22"), Until: now.Add(9 * time.Minute)}}
	h = append(h, holding(2)...)
	for network, want := range map[string]bool{"192.0.2.0/24": true, "192.0.2.0/25": false} {
		k := knock(c, ssh)
		k.LetIn = netip.MustParsePrefix(network)
		gs, err := newPolicy(t, h).Authorize(k, here, now, now)
		if got := err == nil; got != want {
			t.Errorf("%s: %v, want a grant: %v", network, err, want)
		}
		if want && !gs[0].Until.Equal(h[0].Until) {
			t.Errorf("%s ends at %v, before %v", network, gs[0].Until, h[0].Until)
		}
	}
}

// TestNetworkRefused: no network is let in to a service that runs a program, admits one connection or leads elsewhere,
// or by the administrator's own sets.
func TestNetworkRefused(t *testing.T) {
	c := keys.Client{Allow: []string{"ssh"}, Widest4: 8, Delegate: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
	runs, admits, once, leads := newPolicy(t, nil), newPolicy(t, nil), newPolicy(t, nil), newPolicy(t, nil)
	runs.services[1].Action = config.Action{Run: []string{"/bin/true"}}
	admits.admits = true
	once.services[1].Once = true
	leads.services[1].Forward = []netip.AddrPort{netip.MustParseAddrPort("198.51.100.5:22")}
	for name, p := range map[string]*Policy{"runs": runs, "admits": admits, "once": once, "leads": leads} {
		for network, want := range map[string]bool{"192.0.2.0/24": false, "203.0.113.0/28": false, "203.0.113.9/32": true} {
			k := knock(c, ssh)
			k.LetIn = netip.MustParsePrefix(network)
			if _, err := p.Authorize(k, here, now, now); (err == nil) != want {
				t.Errorf("%s: %s: %v, want a grant: %v", name, network, err, want)
			}
		}
		g := firewall.Grant{Client: "alice", Service: "ssh", Source: netip.MustParseAddr("192.0.2.0"), Bits: 24,
			Ports: ports(t, "tcp/22"), Until: now.Add(time.Minute)}
		if p.Keeps(knock(c, ssh).Client, g, now) {
			t.Errorf("%s: a network is kept", name)
		}
	}
}
