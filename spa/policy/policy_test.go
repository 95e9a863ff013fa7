package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

var (
	now  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	here = netip.MustParseAddr("192.0.2.2")
)

// held is what the client already holds.
type held []firewall.Grant

func (h held) GrantsOf(string, time.Time) []firewall.Grant { return h }

// holding returns n grants from one address, each of its own service with one port, the named services included..
func holding(n int, services ...string) held {
	var h held
	for i := range n - len(services) {
		services = append(services, fmt.Sprintf("s%d", i))
	}
	for _, name := range services {
		h = append(h, firewall.Grant{Client: "alice", Service: name, Source: here,
			Ports: []service.Ports{{Proto: service.TCP, Low: 1, High: 1}}, Until: now.Add(time.Minute)})
	}
	return h
}

func ports(t *testing.T, text string) []service.Ports {
	t.Helper()
	p := lab.Value(service.ParsePorts(text))(t)
	return []service.Ports{p}
}

func newPolicy(t *testing.T, h held) *Policy {
	t.Helper()
	c := config.Default("/etc/spa")
	c.Services = []config.Service{
		{Name: "mosh", Ports: ports(t, "udp/60000-60010"), For: time.Minute, MaxFor: time.Hour},
		{Name: "ssh", Ports: ports(t, "tcp/22"), For: 30 * time.Second, MaxFor: 10 * time.Minute},
	}
	c.Limits.Grants, c.Limits.GrantsPerHour = 3, 5
	return New(&c, h)
}

func knock(c keys.Client, services ...service.Service) *spa.Knock {
	if c.Name == "" {
		c.Name = "alice"
	}
	return &spa.Knock{Client: &c, Request: spa.Request{Type: spa.TypeOpen, Time: now, Services: services}}
}

func elsewhere(h held) held {
	for i := range h {
		h[i].Source = netip.MustParseAddr("192.0.2.99")
	}
	return h
}

// wide is one grant of n ports.
func wide(n uint16) held {
	h := holding(1)
	h[0].Ports = []service.Ports{{Proto: service.UDP, Low: 1, High: n}}
	return h
}

var ssh, mosh = service.Service{Name: "ssh"}, service.Service{Name: "mosh"}

func TestSource(t *testing.T) {
	prefixes := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	tests := []struct {
		name   string
		client keys.Client
		stated string
		want   error
	}{
		{"nothing stated, nothing asked", keys.Client{}, "", nil},
		{"stated and observed agree", keys.Client{}, "192.0.2.2", nil},
		{"stated another", keys.Client{}, "192.0.2.3", ErrStated},
		{"stated the other family", keys.Client{}, "2001:db8::2", ErrStated},
		{"in from", keys.Client{From: prefixes("192.0.2.0/24")}, "", nil},
		{"not in from", keys.Client{From: prefixes("198.51.100.0/24")}, "", ErrFrom},
		{"in deny", keys.Client{Deny: prefixes("192.0.2.2/32")}, "", ErrDeny},
		{"an IPv4 link-local address", keys.Client{}, "from 169.254.0.2", ErrLink},
		{"an IPv6 link-local address", keys.Client{}, "from fe80::2", nil},
		{"deny beats from", keys.Client{From: prefixes("192.0.2.0/24"), Deny: prefixes("192.0.2.0/30")}, "", ErrDeny},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			k, from := knock(test.client, ssh), here
			if text, ok := strings.CutPrefix(test.stated, "from "); ok {
				from = netip.MustParseAddr(text)
			} else if test.stated != "" {
				k.Source = netip.MustParseAddr(test.stated)
			}
			if err := newPolicy(t, held{}).Source(k, from); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func raw(proto service.Proto, port uint16) service.Service {
	return service.Service{Proto: proto, Port: port}
}

var allowed = keys.Client{Allow: []string{"ssh", "tcp/22"}}

var denialTests = []struct {
	name   string
	client keys.Client
	ask    []service.Service
	held   held
	want   spa.Status // zero: granted
}{
	{"allowed", allowed, []service.Service{ssh}, held{}, 0},
	{"allowed by port", allowed, []service.Service{raw(service.TCP, 22)}, held{}, 0},
	{"expired", keys.Client{Allow: []string{"ssh"}, Expires: now}, []service.Service{ssh}, held{}, spa.ReasonExpired},
	{"expires later", keys.Client{Allow: []string{"ssh"}, Expires: now.Add(1)}, []service.Service{ssh}, held{}, 0},
	{"states its source", keys.Client{Name: "stating", Allow: []string{"ssh"}, RequireSource: true},
		[]service.Service{ssh}, held{}, 0},
	{"must state its source", keys.Client{Allow: []string{"ssh"}, RequireSource: true}, []service.Service{ssh}, held{},
		spa.ReasonSourceRequired},
	{"unknown service", allowed, []service.Service{{Name: "imap"}}, held{}, spa.ReasonNoService},
	{"not in allow", allowed, []service.Service{mosh}, held{}, spa.ReasonNotAllowed},
	{"all or none", allowed, []service.Service{ssh, mosh}, held{}, spa.ReasonNotAllowed},
	{"allowed by a range", keys.Client{Allow: []string{"udp/60000-60005"}}, []service.Service{raw(service.UDP, 60005)},
		held{}, 0},
	{"past the allowed range", keys.Client{Allow: []string{"udp/60000-60005"}},
		[]service.Service{raw(service.UDP, 60006)}, held{}, spa.ReasonNotAllowed},
	{"a name does not allow the port", keys.Client{Allow: []string{"ssh"}}, []service.Service{raw(service.TCP, 22)},
		held{}, spa.ReasonNotAllowed},
	{"a port does not allow the name", keys.Client{Allow: []string{"tcp/22"}}, []service.Service{ssh}, held{},
		spa.ReasonNotAllowed},
	{"a port that is not guarded", keys.Client{Allow: []string{"tcp/23"}}, []service.Service{raw(service.TCP, 23)},
		held{}, spa.ReasonNoService},
	{"another protocol", keys.Client{Allow: []string{"udp/22"}}, []service.Service{raw(service.UDP, 22)}, held{},
		spa.ReasonNoService},
	{"as many grants as may be", allowed, []service.Service{ssh}, holding(3), spa.ReasonTooManyGrants},
	{"one fewer", allowed, []service.Service{ssh}, holding(2), 0},
	{"a refresh is not one more", allowed, []service.Service{ssh}, holding(3, "ssh"), 0},
	{"a refresh of more than may be by now", allowed, []service.Service{ssh}, holding(4, "ssh"), 0},
	{"a refresh of more ports than may be by now", allowed, []service.Service{ssh},
		append(wide(9000), holding(1, "ssh")...), 0},
	{"from elsewhere it is one more", allowed, []service.Service{ssh}, elsewhere(holding(3, "ssh")),
		spa.ReasonTooManyGrants},
	{"parts of one grant are one", allowed, []service.Service{ssh}, append(holding(1, "mosh"), holding(2, "mosh")...), 0},
	{"as many ports as may be", allowed, []service.Service{ssh}, wide(8192), spa.ReasonTooManyPorts},
	{"one port fewer", allowed, []service.Service{ssh}, wide(8191), 0},
	{"two more are too many", keys.Client{Allow: []string{"ssh", "mosh"}}, []service.Service{ssh, mosh}, holding(2),
		spa.ReasonTooManyGrants},
}

func TestDenials(t *testing.T) {
	for _, test := range denialTests {
		t.Run(test.name, func(t *testing.T) {
			k := knock(test.client, test.ask...)
			if k.Client.Name == "stating" {
				k.Source = here
			}
			grants, err := newPolicy(t, test.held).Authorize(k, here, now, now)
			if test.want == 0 {
				if err != nil || len(grants) != len(test.ask) {
					t.Fatalf("got %d grants and %v, want %d", len(grants), err, len(test.ask))
				}
				return
			}
			denial, ok := errors.AsType[*Denial](err)
			if !ok || denial.Reason != test.want || grants != nil {
				t.Fatalf("got %v and %v, want %v", grants, err, test.want)
			}
			text := test.want.String()
			if denial.Service != "" {
				text = denial.Service + ": " + text
			}
			if err.Error() != text {
				t.Errorf("it says %q, want %q", err, text)
			}
		})
	}
}

func TestDuration(t *testing.T) {
	tests := []struct {
		name      string
		asked     time.Duration
		clientMax time.Duration
		start     time.Time
		want      time.Time
	}{
		{"the service's own", 0, 0, now, now.Add(30 * time.Second)},
		{"as asked", time.Minute, 0, now, now.Add(time.Minute)},
		{"clipped to the service's maximum", time.Hour, 0, now, now.Add(10 * time.Minute)},
		{"clipped to the client's maximum", time.Hour, 5 * time.Minute, now, now.Add(5 * time.Minute)},
		{"the client's maximum clips the default too", 0, 10 * time.Second, now, now.Add(10 * time.Second)},
		{"a client's maximum above the service's does not lengthen", time.Hour, time.Hour, now, now.Add(10 * time.Minute)},
		{"counted from the first try", time.Minute, 0, now.Add(-20 * time.Second), now.Add(40 * time.Second)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			k := knock(keys.Client{Allow: []string{"ssh"}, MaxFor: test.clientMax}, ssh)
			k.For = test.asked
			grants := lab.Value(newPolicy(t, held{}).Authorize(k, here, test.start, now))(t)
			if got := grants[0].Until; !got.Equal(test.want) {
				t.Errorf("until %v, want %v", got, test.want)
			}
		})
	}
}

func TestGrantSaysWhoAndWhat(t *testing.T) {
	k := knock(keys.Client{Name: "bob", Allow: []string{"mosh", "udp/60001"}}, mosh,
		service.Service{Proto: service.UDP, Port: 60001})
	grants := lab.Value(newPolicy(t, held{}).Authorize(k, here, now, now))(t)
	range1, port := grants[0], grants[1]
	if range1.Client != "bob" || range1.Service != "mosh" || range1.Source != here ||
		range1.Ports[0].String() != "udp/60000-60010" {
		t.Errorf("got %+v", range1)
	}
	if port.Service != "udp/60001" || port.Ports[0].String() != "udp/60001" {
		t.Errorf("a raw port got %+v, want that port alone", port)
	}
}

func TestGrantsPerHour(t *testing.T) {
	p := newPolicy(t, held{})
	ask := func(client string, at time.Time) error {
		_, err := p.Authorize(knock(keys.Client{Name: client, Allow: []string{"ssh"}}, ssh), here, at, at)
		return err
	}
	for i := range 5 {
		if err := ask("alice", now); err != nil {
			t.Fatalf("grant %d of 5: %v", i+1, err)
		}
	}
	if denial, ok := errors.AsType[*Denial](ask("alice", now)); !ok || denial.Reason != spa.ReasonTooManyPerHour {
		t.Errorf("the sixth within an hour of five: got %v", denial)
	}
	if err := ask("bob", now); err != nil {
		t.Errorf("bob pays for alice: %v", err)
	}
	if err := ask("alice", now.Add(-time.Hour)); err == nil {
		t.Error("a clock that was set back refills the allowance")
	}
	if err := ask("alice", now.Add(-time.Hour+12*time.Minute+time.Second)); err != nil {
		t.Errorf("a fifth of an hour later one more is due: %v", err)
	}
}

// TestHourlyRate: a client that asks continuously gets the limit at once and then as many per hour, in any part of the
// time, whatever its pauses.
func TestHourlyRate(t *testing.T) {
	const limit = 5
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		p := newPolicy(t, held{})
		var given []time.Time
		last := now
		for at := now; at.Before(now.Add(20 * time.Hour)); at = at.Add(time.Duration(rng.IntN(120)) * time.Second) {
			if _, err := p.Authorize(knock(keys.Client{Allow: []string{"ssh"}}, ssh), here, at, at); err == nil {
				given = append(given, at)
			}
			last = at
		}
		for i, from := range given {
			for j, to := range given[i:] {
				if most := limit + limit*to.Sub(from).Hours(); float64(j+1) > most+1e-6 {
					t.Fatalf("seed %d: %d in %v, want at most %v", seed, j+1, to.Sub(from), most)
				}
			}
		}
		if due := limit + limit*last.Sub(now).Hours(); float64(len(given)) < due-1 {
			t.Errorf("seed %d: %d in %v, want %v", seed, len(given), last.Sub(now), due)
		}
	}
}

// TestAddressesOfAFamily: a grant covers those addresses of the service that have its source's family.
func TestAddressesOfAFamily(t *testing.T) {
	all := []netip.Addr{netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("2001:db8:1::5"),
		netip.MustParseAddr("198.51.100.6"), netip.MustParseAddr("2001:db8:1::6")}
	for _, from := range []string{"192.0.2.2", "::ffff:192.0.2.2", "2001:db8::2"} {
		from := netip.MustParseAddr(from)
		for some := range 1 << len(all) {
			p := newPolicy(t, held{})
			var want []netip.Addr
			for i, a := range all {
				if some&(1<<i) == 0 {
					continue
				}
				p.services[1].Addresses = append(p.services[1].Addresses, a)
				if a.Is4() == from.Unmap().Is4() {
					want = append(want, a)
				}
			}
			gs, err := p.Authorize(knock(keys.Client{Allow: []string{"ssh"}}, ssh), from, now, now)
			if denial, ok := errors.AsType[*Denial](err); ok {
				if denial.Reason != spa.ReasonOtherFamily || len(want) > 0 || some == 0 {
					t.Errorf("%v to %v: %v", from, p.services[1].Addresses, err)
				}
				continue
			}
			if err != nil || !slices.Equal(gs[0].To, want) || some != 0 && len(want) == 0 {
				t.Errorf("%v to %v: got %v, %v, want %v", from, p.services[1].Addresses, gs, err, want)
			}
		}
	}
}

// TestPortsAtOnce: wide grants are rate-limited, because others wait while the kernel is updated. A refused request is
// charged neither as a grant nor by its ports.
func TestPortsAtOnce(t *testing.T) {
	p := newPolicy(t, held{})
	p.services[1].Ports = ports(t, "tcp/1-8000") // ssh
	p.limits.GrantsPerHour = 4
	ask := func(client string, at time.Time) spa.Status {
		_, err := p.Authorize(knock(keys.Client{Name: client, Allow: []string{"ssh", "mosh"}}, ssh), here, at, at)
		if denial, ok := errors.AsType[*Denial](err); ok {
			return denial.Reason
		}
		return 0
	}
	for i, step := range []struct {
		client string
		after  time.Duration
		want   spa.Status
	}{
		{"alice", 0, 0},
		{"alice", 0, spa.ReasonTooManyPorts},
		{"bob", 0, 0}, // each client has its own limit
		{"alice", 7800 * time.Millisecond, spa.ReasonTooManyPorts},
		{"alice", 7900 * time.Millisecond, 0},
		{"alice", -time.Hour, spa.ReasonTooManyPorts}, // setting the clock back refunds nothing
		{"alice", -time.Hour + 8*time.Second, 0},
		{"alice", -time.Hour + 16*time.Second, 0},
		{"alice", -time.Hour + 24*time.Second, spa.ReasonTooManyPerHour},
	} {
		if got := ask(step.client, now.Add(step.after)); got != step.want {
			t.Errorf("step %d: got %v, want %v", i, got, step.want)
		}
	}
	if got := p.With(&config.Config{Services: p.services, Limits: p.limits}); got.used["bob"] != p.used["bob"] ||
		got.used["bob"] == nil {
		t.Error("a reload refills the allowance")
	}
}

func TestRefusedIsNotCharged(t *testing.T) {
	p := newPolicy(t, held{})
	for range 10 {
		p.Authorize(knock(keys.Client{Allow: []string{"ssh"}}, ssh, mosh), here, now, now)
	}
	if _, err := p.Authorize(knock(keys.Client{Allow: []string{"ssh"}}, ssh), here, now, now); err != nil {
		t.Errorf("what was refused was charged: %v", err)
	}
}

func TestClosable(t *testing.T) {
	tests := []struct {
		name   string
		client keys.Client
		ask    []service.Service
		want   spa.Status
	}{
		{"allowed", keys.Client{Allow: []string{"ssh"}, RequireSource: true}, []service.Service{ssh}, 0},
		{"unknown service", keys.Client{Allow: []string{"ssh"}}, []service.Service{{Name: "imap"}}, spa.ReasonNoService},
		{"service of others", keys.Client{Allow: []string{"ssh"}}, []service.Service{mosh}, spa.ReasonNotAllowed},
		{"one is a service of others", keys.Client{Allow: []string{"ssh"}}, []service.Service{ssh, mosh},
			spa.ReasonNotAllowed},
		{"expired", keys.Client{Allow: []string{"ssh"}, Expires: now}, []service.Service{ssh}, spa.ReasonExpired},
	}
	for _, test := range tests {
		err := newPolicy(t, holding(1000)).Closable(knock(test.client, test.ask...), now)
		if denial, _ := errors.AsType[*Denial](err); (err != nil) != (test.want != 0) ||
			err != nil && denial.Reason != test.want {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
}

// TestKeeps: a client may not keep a grant that it could no longer get. Keeps distinguishes grants that it may request
// again from those that were taken away.
func TestKeeps(t *testing.T) {
	prefixes := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/30")}
	grant := firewall.Grant{Client: "alice", Service: "ssh", Source: here, Ports: ports(t, "tcp/22"),
		Until: now.Add(5 * time.Minute)}
	tests := []struct {
		name   string
		client *keys.Client
		grant  func(*firewall.Grant)
		want   bool
		allows bool
	}{
		{"as before", &keys.Client{Allow: []string{"ssh"}}, nil, true, true},
		{"no client any more", nil, nil, false, false},
		{"no client any more, and no ports", nil, func(g *firewall.Grant) { g.Ports = nil }, false, false},
		{"revoked", &keys.Client{Allow: []string{"ssh"}, Revoked: now}, nil, false, false},
		{"expired", &keys.Client{Allow: []string{"ssh"}, Expires: now}, nil, false, false},
		{"not allowed any more", &keys.Client{Allow: []string{"mosh"}}, nil, false, false},
		{"denied from there", &keys.Client{Allow: []string{"ssh"}, Deny: prefixes}, nil, false, false},
		{"permitted from there", &keys.Client{Allow: []string{"ssh"}, From: prefixes}, nil, true, true},
		{"longer than the client may", &keys.Client{Allow: []string{"ssh"}, MaxFor: time.Minute}, nil, false, true},
		{"as long as the service may be open", &keys.Client{Allow: []string{"ssh"}},
			func(g *firewall.Grant) { g.Until = now.Add(10 * time.Minute) }, true, true},
		{"longer than the service may be open", &keys.Client{Allow: []string{"ssh"}},
			func(g *firewall.Grant) { g.Until = now.Add(time.Hour) }, false, true},
		{"ports that are not the service's", &keys.Client{Allow: []string{"ssh"}},
			func(g *firewall.Grant) { g.Ports = ports(t, "tcp/23") }, false, true},
		{"no such service any more", &keys.Client{Allow: []string{"imap"}}, func(g *firewall.Grant) { g.Service = "imap" },
			false, false},
	}
	for _, test := range tests {
		g := grant
		if test.grant != nil {
			test.grant(&g)
		}
		if got := newPolicy(t, nil).Keeps(test.client, g, now); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
		if got := newPolicy(t, nil).Allows(test.client, g, now); got != test.allows {
			t.Errorf("%s: allows: got %v, want %v", test.name, got, test.allows)
		}
	}
}

// TestKeepsDestination: a grant is for the address that its service had, and is kept only while the service is there.
func TestKeepsDestination(t *testing.T) {
	addrs := func(texts ...string) (all []netip.Addr) {
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	one, both, other := addrs("198.51.100.1"), addrs("198.51.100.1", "198.51.100.2"), addrs("198.51.100.3")
	client := &keys.Client{Allow: []string{"ssh"}}
	for _, test := range []struct {
		was, is []netip.Addr // none: this host
		want    bool
	}{
		{nil, nil, true}, {one, one, true}, {both, both, true}, {one, both, true},
		{both, one, false}, {one, other, false}, {nil, one, false}, {one, nil, false},
	} {
		p := newPolicy(t, nil)
		for i := range p.services {
			p.services[i].Addresses = test.is
		}
		g := firewall.Grant{Client: "alice", Service: "ssh", Source: here, To: test.was, Ports: ports(t, "tcp/22"),
			Until: now.Add(time.Minute)}
		if got := p.Keeps(client, g, now); got != test.want {
			t.Errorf("granted for %v, which is now at %v: kept %v, want %v", test.was, test.is, got, test.want)
		}
	}
}

// TestSetClock: a grant's end is computed from now, so that it counts elapsed time whatever the wall clock is set to,
// even if the clock was set after the first packet.
func TestSetClock(t *testing.T) {
	now := time.Now()
	k := knock(keys.Client{Allow: []string{"ssh"}}, ssh)
	for name, start := range map[string]time.Time{"set back": now.Add(time.Hour).Round(0), "just now": now.Round(0)} {
		grants, err := newPolicy(t, nil).Authorize(k, here, start, now)
		if err != nil || grants[0].Until != now.Add(30*time.Second) {
			t.Errorf("%s: until %v and %v, want %v", name, grants, err, now.Add(30*time.Second))
		}
	}
}
