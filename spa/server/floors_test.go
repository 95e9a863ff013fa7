package server

import (
	"context"
	"fmt"
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
	"sallyport/spa/server/control"
)

// becomes writes alice's file and makes the server read it.
func (b *bench) becomes(change func(c *keys.Client)) {
	b.Helper()
	b.s.dir = b.s.config.Dir
	c := *b.client
	change(&c)
	lab.Must(b, keys.WriteClient(b.s.dir, &c, false))
	b.s.reloadClient(b.Context(), "alice")
}

// TestFloors: an older packet does not open what was taken from its client, even if it is given back a moment later,
// and whether or not it was open.
func TestFloors(t *testing.T) {
	for name, take := range map[string]func(b *bench){
		"revoked, nothing held": func(b *bench) { b.s.revoke(b.Context(), control.Request{Client: "alice"}) },
		"taken away, nothing held": func(b *bench) {
			b.becomes(func(c *keys.Client) { c.Allow = []string{"web"} })
		},
		"held, from where it may not be": func(b *bench) {
			b.s.process(context.Background(), b.packet(0))
			b.becomes(func(c *keys.Client) { c.Deny = within("192.0.2.0/24") })
		},
	} {
		b := newBench(t)
		held := b.packet(-time.Second)
		take(b)
		b.becomes(func(*keys.Client) {})
		b.arrive(held)
		if got := b.event.Receipt.Status; got != spa.ReasonSuperseded {
			t.Errorf("%s: an earlier packet: %v", name, got)
		}
	}
}

// TestShortened: a grant that is longer than the new maximum ends, a retry does not report it as open, and a new
// request is granted at once on the new terms. A service that is no longer allowed is refused for that reason.
func TestShortened(t *testing.T) {
	b := newBench(t)
	b.rule(wide(1))
	b.enrol(func(c *keys.Client) { c.Allow = []string{"ssh", "w0"} })
	b.client, _ = b.s.clients.Client("alice")
	b.ask("w0") // unaffected
	first := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at, For: 10 * time.Minute,
		Services: []service.Service{{Name: "ssh"}}}
	want := func(what string, status spa.Status) {
		t.Helper()
		if got := b.event.Receipt.Status; got != status {
			t.Errorf("%s: %v, want %v", what, got, status)
		}
	}
	b.take(first)
	want("the first", spa.Granted)
	b.take(first)
	want("a retry", spa.Granted)
	b.becomes(func(c *keys.Client) { c.MaxFor = time.Minute })
	b.take(first)
	want("a retry of what was ended", spa.ReasonSuperseded)
	again := b.ask("ssh")
	want("a new request", spa.Granted)
	b.at = b.at.Add(40 * time.Second)
	again.Time = b.at
	b.take(again)
	want("a retry when it is over", spa.Granted)
	b.becomes(func(c *keys.Client) { c.Allow = []string{"web"} })
	b.ask("ssh")
	want("not allowed", spa.ReasonNotAllowed)
}

// TestLostPorts: a client that loses single ports is refused those, even if they are given back at once, and keeps
// named services.
func TestLostPorts(t *testing.T) {
	f := newFinal(t, 0, 0)
	f.becomes(func(c *keys.Client) { c.Allow = []string{"ssh", "tcp/1000-2000"} })
	f.becomes(func(c *keys.Client) {})
	for service, want := range map[string]spa.Status{"ssh": spa.Granted, "admin": spa.ReasonSuperseded,
		"tcp/22": spa.ReasonSuperseded} {
		c := f.command("alice", spa.TypeOpen, f.at, service)
		if got := f.deliver(f.packet(c, f.at, "192.0.2.2"), f.at); got != want {
			t.Errorf("%s: %v, want %v", service, got, want)
		}
	}
}

// TestRepeatElsewhere: a retry from another address does not report the first grant as open after it was revoked.
func TestRepeatElsewhere(t *testing.T) {
	f := newFinal(t, 0, 0)
	f.open("192.0.2.3", "ssh")
	c := f.command("alice", spa.TypeOpen, f.at, "ssh")
	for _, from := range []string{"192.0.2.2", "192.0.2.3"} {
		if got := f.deliver(f.packet(c, f.at, from), f.at); got != spa.Granted {
			t.Errorf("from %s: %v", from, got)
		}
	}
	f.s.revoke(t.Context(), control.Request{Source: netip.MustParseAddr("192.0.2.2")})
	if got := f.deliver(f.packet(c, f.at, "192.0.2.3"), f.at); got != spa.ReasonSuperseded {
		t.Errorf("after the revocation: %v", got)
	}
}

// open makes alice open services from an address, now.
func (f *final) open(from string, services ...string) {
	f.Helper()
	c := f.command("alice", spa.TypeOpen, f.at, services...)
	if got := f.deliver(f.packet(c, f.at, from), f.at); got != spa.Granted {
		f.Fatalf("open %v: %v", services, got)
	}
}

// TestCloseEnds: a close ends the sender's grants of the services, and those under other names that have no further
// ports. Grants of other addresses or clients continue.
func TestCloseEnds(t *testing.T) {
	for _, services := range asks {
		t.Run(strings.Join(services, ","), func(t *testing.T) {
			f := newFinal(t, 0, 0)
			for _, from := range []string{"192.0.2.2", "192.0.2.3"} {
				for _, ask := range asks {
					f.open(from, ask...)
				}
			}
			bob := f.command("bob", spa.TypeOpen, f.at, "ssh", "tcp/22")
			f.deliver(f.packet(bob, f.at, "192.0.2.2"), f.at)
			var want []string
			for _, g := range f.s.firewall.Grants(f.at) {
				if g.Client == "bob" || g.Source == netip.MustParseAddr("192.0.2.3") ||
					!covers(portsOf(t, services, len(g.To) > 0), g.Ports) {
					want = append(want, fmt.Sprint(g.Client, g.Service, g.Source))
				}
			}
			c := f.command("alice", spa.TypeClose, f.at, services...)
			if got := f.deliver(f.packet(c, f.at, "192.0.2.2"), f.at); got != spa.Closed {
				t.Fatal(got)
			}
			var got []string
			for _, g := range f.s.firewall.Grants(f.at) {
				got = append(got, fmt.Sprint(g.Client, g.Service, g.Source))
			}
			if !slices.Equal(got, want) {
				t.Errorf("left: %v, want %v", got, want)
			}
		})
	}
}

// covers reports whether each single port is among those given.
func covers(those, ports []service.Ports) bool {
	for _, r := range ports {
		for port := int(r.Low); port <= int(r.High); port++ {
			if !overlap(those, []service.Ports{{Proto: r.Proto, Low: uint16(port), High: uint16(port)}}) {
				return false
			}
		}
	}
	return true
}

// TestClosedNameStaysClosed: a service that was closed by name is not opened by an older packet with that name, even if
// the service has other ports by then.
func TestClosedNameStaysClosed(t *testing.T) {
	f := newFinal(t, 0, 0)
	held := f.packet(f.command("alice", spa.TypeOpen, f.at, "ssh"), f.at, "192.0.2.2")
	c := f.command("alice", spa.TypeClose, f.at, "ssh")
	f.deliver(f.packet(c, f.at, "192.0.2.2"), f.at)
	f.rule(func(c *config.Config) {
		i := slices.IndexFunc(c.Services, func(s config.Service) bool { return s.Name == "ssh" })
		c.Services[i].Ports = parsed(t, "tcp/2222")
	})
	if got := f.deliver(held, f.at); got != spa.ReasonSuperseded {
		t.Errorf("an earlier packet: %v", got)
	}
}

// TestCloseAfterRevoke: a close from before the revocation opens nothing, and is answered as usual.
func TestCloseAfterRevoke(t *testing.T) {
	f := newFinal(t, 0, 0)
	f.open("192.0.2.2", "ssh")
	held := f.packet(f.command("alice", spa.TypeClose, f.at, "ssh"), f.at, "192.0.2.2")
	f.s.revoke(t.Context(), control.Request{Client: "alice"})
	if got := f.deliver(held, f.at); got != spa.Closed {
		t.Errorf("got %v", got)
	}
}

// TestPortsOfFloors: each requested port has its own floor, or all share one if there are many.
func TestPortsOfFloors(t *testing.T) {
	b := newBench(t)
	for _, test := range []struct{ first, second, want int }{{1, 0, 1}, {15, 0, 15}, {16, 0, 16}, {17, 0, 1},
		{8, 8, 16}, {8, 9, 1}, {16, 1, 1}} {
		services := []service.Service{{Name: "first"}, {Name: "second"}}
		b.rule(func(c *config.Config) {
			c.Services = []config.Service{
				config.NewService("first", service.Ports{Proto: service.TCP, Low: 100, High: uint16(99 + test.first)}),
				config.NewService("second", service.Ports{Proto: service.UDP, Low: 100, High: uint16(99 + test.second)}),
			}
			if test.second == 0 {
				c.Services, services = c.Services[:1], services[:1]
			}
		})
		got := b.s.ports(services, "many")
		if len(got) != test.want || slices.Contains(got, "many") != (test.first+test.second > manyPorts) {
			t.Errorf("%d and %d ports: got %v", test.first, test.second, got)
		}
	}
}

// TestSightingsAreBounded: the memory of a client does not grow with its grants, and a stale packet, which may be a
// copy, does not change what is known of its clock.
func TestSightingsAreBounded(t *testing.T) {
	w := &sighting{}
	for i := range 2 * mostGranted {
		w.addGrants([]firewall.Grant{{Service: fmt.Sprint(i)}})
	}
	if len(w.granted) != mostGranted || w.granted[0].Service != fmt.Sprint(mostGranted) {
		t.Errorf("%d are remembered, the first %v", len(w.granted), w.granted[0])
	}
	b := newBench(t)
	b.s.process(context.Background(), b.packet(0))
	b.s.process(context.Background(), b.packet(40*time.Second))
	if d := b.s.seen.of["alice"].offset; d != 0 {
		t.Errorf("the clock is ahead by %v", d)
	}
}
