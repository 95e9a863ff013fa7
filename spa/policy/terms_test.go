package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// anyService is a service with some ranges around tcp/22 and its own terms.
func anyService(t *testing.T, rng *rand.Rand, name string) config.Service {
	t.Helper()
	s := config.NewService(name)
	for range 1 + rng.IntN(3) {
		low := uint16(18 + rng.IntN(8))
		s.Ports = append(s.Ports, service.Ports{Proto: []service.Proto{service.TCP, service.TCP, service.UDP}[rng.IntN(3)],
			Low: low, High: low + uint16(rng.IntN(5))})
	}
	s.For = time.Duration(1+rng.IntN(20)) * time.Minute
	s.MaxFor = s.For + time.Duration(rng.IntN(60))*time.Minute
	if rng.IntN(2) == 0 {
		from := 11*60 + rng.IntN(120)
		s.When = spans(t, fmt.Sprintf("sun %02d:%02d-%02d:%02d", from/60, from%60, 13+rng.IntN(2), rng.IntN(60)))
	}
	return s
}

// anyServices returns a configuration with one to four services.
func anyServices(t *testing.T, rng *rand.Rand) config.Config {
	t.Helper()
	c := config.Default("/etc/spa")
	for n := range 1 + rng.IntN(4) {
		c.Services = append(c.Services, anyService(t, rng, fmt.Sprintf("s%d", n)))
	}
	return c
}

// servicesOf returns the services that have a port.
func servicesOf(c *config.Config, port service.Service) []service.Service {
	var having []service.Service
	for _, s := range c.Services {
		if slices.ContainsFunc(s.Ports, func(p service.Ports) bool { return p.Contains(port.Proto, port.Port) }) {
			having = append(having, service.Service{Name: s.Name})
		}
	}
	return having
}

// TestRawPortIsNeverWidened: a port requested by number gets the strictest terms of all services that it belongs to:
// what each of them would give by name, and no more if one more service has it.
func TestRawPortIsNeverWidened(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	granted, denied, narrower := 0, 0, 0
	for range 3000 {
		c := anyServices(t, rng)
		port := service.Service{Proto: service.TCP, Port: uint16(18 + rng.IntN(10))}
		client := keys.Client{Name: "alice", Allow: []string{"tcp/20-23", port.String(), "s0", "s1", "s2", "s3", "a", "z"}}
		if rng.IntN(2) == 0 {
			client.MaxFor = time.Duration(1+rng.IntN(60)) * time.Minute
		}
		at := now.Add(time.Duration(rng.IntN(240)-60) * time.Minute)
		asked := time.Duration(rng.IntN(3)*rng.IntN(40)) * time.Minute
		until := func(c *config.Config, s service.Service) time.Time {
			k := knock(client, s)
			k.For = asked
			grants, err := New(c, held{}).Authorize(k, here, at, at)
			if err != nil {
				return time.Time{}
			}
			return grants[0].Until
		}
		before, having := until(&c, port), servicesOf(&c, port)
		var strictest time.Time // zero: it is not guarded
		for i, s := range having {
			if u := until(&c, s); i == 0 || u.Before(strictest) {
				strictest = u
			}
		}
		if !before.Equal(strictest) {
			t.Fatalf("%v of %+v: until %v, want %v", port, c.Services, before, strictest)
		}
		more := c
		more.Services = append([]config.Service{anyService(t, rng, "a")}, c.Services...)
		if rng.IntN(2) == 0 {
			more.Services = append(slices.Clone(c.Services), anyService(t, rng, "z"))
		}
		after := until(&more, port)
		if len(having) > 0 && after.After(before) {
			t.Fatalf("%v of %+v: until %v, and with one service more until %v", port, more.Services, before, after)
		}
		switch {
		case before.IsZero():
			denied++
			continue
		case after.Before(before):
			narrower++
		}
		granted++
		g := firewall.Grant{Client: "alice", Service: port.String(), Source: here, Ports: ports(t, port.String()),
			Until: at.Add(time.Duration(rng.IntN(90)) * time.Minute)}
		keeps := func(c *config.Config) bool { return New(c, held{}).Keeps(&client, g, at) }
		if keeps(&more) && !keeps(&c) {
			t.Fatalf("%v of %+v may be held until %v with one service more", port, more.Services, g.Until)
		}
	}
	if granted < 500 || denied < 500 || narrower < 100 {
		t.Errorf("%d granted, %d denied, %d narrower with one more: too few of a kind", granted, denied, narrower)
	}
}

// TestCovered: ports are covered if every single one is, however the ranges are split.
func TestCovered(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	some := func() []service.Ports {
		var list []service.Ports
		for range rng.IntN(4) {
			low := []uint16{1, 2, 5, 65530, 65535}[rng.IntN(5)]
			list = append(list, service.Ports{Proto: []service.Proto{service.TCP, service.UDP}[rng.IntN(2)], Low: low,
				High: low + uint16(rng.IntN(min(6, 65536-int(low))))})
		}
		return list
	}
	counts := map[bool]int{}
	for range 20000 {
		ports, ranges := some(), some()
		want := true
		for _, p := range ports {
			for port := int(p.Low); port <= int(p.High); port++ {
				want = want && slices.ContainsFunc(ranges, func(r service.Ports) bool { return r.Contains(p.Proto, uint16(port)) })
			}
		}
		if got := covered(ports, ranges); got != want {
			t.Fatalf("%v by %v: got %v", ports, ranges, got)
		}
		counts[want]++
	}
	if counts[true] < 1000 || counts[false] < 1000 {
		t.Errorf("%v", counts)
	}
}

// TestWithin: a grant is within services exactly if each of its ports belongs to one of them, at each address that the
// grant has; checked one by one.
func TestWithin(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	spots := [][]netip.Addr{nil, {netip.MustParseAddr("198.51.100.5")}, {netip.MustParseAddr("198.51.100.5"),
		netip.MustParseAddr("198.51.100.6")}}
	var counts [2]int
	for range 3000 {
		c := config.Default("/etc/spa")
		for n := range 3 {
			s := anyService(t, rng, fmt.Sprintf("s%d", n))
			s.Addresses = spots[rng.IntN(3)]
			c.Services = append(c.Services, s)
		}
		p := New(&c, held{})
		var services []service.Service
		has := make(map[netip.Addr][]service.Ports) // the zero Addr is this host
		for _, s := range c.Services[:1+rng.IntN(3)] {
			services = append(services, service.Service{Name: s.Name})
			at := s.Addresses
			if at == nil {
				at = []netip.Addr{{}}
			}
			if got := p.At(service.Service{Name: s.Name}); !slices.Equal(got, at) {
				t.Fatalf("%s is at %v, want %v", s.Name, got, at)
			}
			for _, a := range at {
				has[a] = append(has[a], s.Ports...)
			}
		}
		g := firewall.Grant{To: spots[rng.IntN(3)], Ports: anyService(t, rng, "").Ports[:1]}
		at := g.To
		if at == nil {
			at = []netip.Addr{{}}
		}
		want := true
		for _, a := range at {
			for port := int(g.Ports[0].Low); port <= int(g.Ports[0].High); port++ {
				want = want && slices.ContainsFunc(has[a], func(r service.Ports) bool {
					return r.Contains(g.Ports[0].Proto,
						uint16(port))
				})
			}
		}
		if got := p.Within(g, services); got != want {
			t.Fatalf("%v at %v is within %v: %v, want %v", g.Ports, g.To, has, got, want)
		}
		if want {
			counts[1]++
		} else {
			counts[0]++
		}
	}
	if min(counts[0], counts[1]) < 100 {
		t.Errorf("too few of a kind: %v", counts)
	}
}
