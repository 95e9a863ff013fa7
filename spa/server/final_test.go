package server

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/policy"
	"sallyport/spa/replay"
	"sallyport/spa/server/control"
)

// shared are services that share ports: admin has the port of ssh and another; span has it among more ports than get a
// floor each; inner has the same port at another address.
var shared = map[string][]string{
	"ssh": {"tcp/22"}, "admin": {"tcp/22", "tcp/8443"}, "web": {"tcp/80"}, "span": {"tcp/20-60"}, "inner": {"tcp/22"},
}

var inside = netip.MustParseAddr("198.51.100.5")

// asks lists what alice may request and what may be closed.
var asks = [][]string{
	{"ssh"}, {"tcp/22"}, {"admin"}, {"tcp/8443"}, {"web"}, {"span"}, {"tcp/30"}, {"web", "ssh"}, {"tcp/80", "tcp/22"},
	{"inner"},
}

// A final is a client behind a network that delays its packets, and a server that may be killed.
type final struct {
	*bench
	names  map[string]spa.Sender // by client name
	offset time.Duration         // of the clients' clocks
	delay  time.Duration         // of every packet that is not held back
}

func newFinal(t *testing.T, offset, delay time.Duration) *final {
	t.Helper()
	f := &final{bench: newBench(t), offset: offset, delay: delay}
	f.rule(func(c *config.Config) {
		c.Services = nil
		for name, texts := range shared {
			s := config.NewService(name, parsed(t, texts...)...)
			if name == "inner" {
				s.Addresses = []netip.Addr{inside}
			}
			c.Services = append(c.Services, s)
		}
		slices.SortFunc(c.Services, func(a, b config.Service) int { return strings.Compare(a.Name, b.Name) })
		c.Limits.Grants = 1000
	})
	f.s.dir = f.s.config.Dir
	f.enrol(func(c *keys.Client) { c.Allow = []string{"ssh", "admin", "web", "span", "inner", "tcp/1-65535"} })
	f.client, _ = f.s.clients.Client("alice")
	bob := &keys.Client{Name: "bob", ID: keys.NewID(), Key: keys.NewKey(), Allow: f.client.Allow}
	lab.Must(t, keys.WriteClient(f.s.dir, bob, true))
	f.s.clients.Reload("bob")
	f.names = map[string]spa.Sender{"alice": f.sender, "bob": {Server: f.sender.Server, Gate: f.sender.Gate,
		ID: bob.ID, Key: bob.Key}}
	return f
}

func parsed(t testing.TB, texts ...string) []service.Ports {
	t.Helper()
	var list []service.Ports
	for _, text := range texts {
		ports := lab.Value(service.ParsePorts(text))(t)
		list = append(list, ports)
	}
	return list
}

// A command of a client, made at a time of the server's clock.
type command struct {
	client string
	spa.Request
}

func (f *final) command(client string, kind spa.Type, made time.Time, services ...string) command {
	c := command{client, spa.Request{ID: spa.NewRequestID(), Type: kind, Time: made.Add(f.offset)}}
	for _, text := range services {
		service := lab.Value(service.ParseService(text))(f)
		c.Services = append(c.Services, service)
	}
	return c
}

// packet returns one packet of a command, made at a time, as it arrives from an address.
func (f *final) packet(c command, made time.Time, from string) capture.Packet {
	c.Time = made.Add(f.offset)
	data := lab.Value(spa.Seal(c.Request, f.names[c.client]))(f)
	p := arriving(data)
	p.From = netip.AddrPortFrom(netip.MustParseAddr(from), 40000)
	return p
}

// deliver delivers a packet at a time, and returns the answer.
func (f *final) deliver(p capture.Packet, at time.Time) spa.Status {
	f.at = at
	event := f.s.handle(context.Background(), p)
	f.s.seen.note(event)
	return event.Receipt.Status
}

// kill is kill -9 and a start: the journal stays as it is in the file, all else is lost.
func (f *final) kill() {
	f.Helper()
	c := f.s.config
	journal, err := replay.Open(filepath.Join(c.Dir, "journal"), replay.Config{Window: c.Window,
		LiveNonces: c.Limits.LiveNonces}, f.at)
	lab.Must(f, err)
	f.Cleanup(func() { journal.Close() })
	f.s.journal, f.s.seen = journal, newSightings()
	f.s.policy = policy.New(c, f.s.firewall)
}

// A finale takes something from alice, or from everyone at an address.
type finale struct {
	name      string
	closed    []string // nil: everything
	everybody bool     // everyone at the address
	do        func(f *final)
}

// endings are all of them.
func endings() []finale {
	revoke := func(r control.Request) func(f *final) {
		return func(f *final) { f.s.revoke(f.Context(), r) }
	}
	ends := []finale{
		{"revoke client", nil, false, revoke(control.Request{Client: "alice"})},
		{"revoke client, cut", nil, false, revoke(control.Request{Client: "alice", Cut: true})},
		{"revoke address", nil, true, revoke(control.Request{Source: netip.MustParseAddr("192.0.2.2")})},
		{"revoke address, cut", nil, true, revoke(control.Request{Source: netip.MustParseAddr("::ffff:192.0.2.2"),
			Cut: true})},
		{"taken in the file and given back", nil, false, func(f *final) {
			f.becomes(func(c *keys.Client) { c.Allow = []string{"nothing"} })
			f.becomes(func(c *keys.Client) {})
		}},
	}
	for _, services := range asks {
		ends = append(ends, finale{fmt.Sprint("close ", services), services, false, func(f *final) {
			c := f.command("alice", spa.TypeClose, f.at.Add(-f.delay), services...)
			if got := f.deliver(f.packet(c, f.at.Add(-f.delay), "192.0.2.2"), f.at); got != spa.Closed {
				f.Errorf("the close is answered: %v", got)
			}
		}})
	}
	return ends
}

// portsOf returns the ports that services have at this host, or inside.
func portsOf(t testing.TB, services []string, in bool) []service.Ports {
	t.Helper()
	var list []service.Ports
	for _, service := range services {
		if (service == "inner") != in {
			continue
		}
		texts, named := shared[service]
		if !named {
			texts = []string{service}
		}
		list = append(list, parsed(t, texts...)...)
	}
	return list
}

func overlap(a, b []service.Ports) bool {
	return slices.ContainsFunc(a, func(a service.Ports) bool {
		return slices.ContainsFunc(b, func(b service.Ports) bool {
			return a.Proto == b.Proto && a.Low <= b.High &&
				b.Low <= a.High
		})
	})
}

// A late is a packet that arrives after the end.
type late struct {
	what    string
	packet  capture.Packet
	stamp   time.Time
	at      time.Time
	granted bool // must be granted; otherwise must not
}

// TestEndsAreFinal: once a revocation or a close is answered, no packet that was first stamped before it opens
// anything, whatever the client's clock, however late the packet, by whatever name it asks, and even if the server was
// killed right after the answer. Everything else can still be opened.
func TestEndsAreFinal(t *testing.T) {
	const window = 30 * time.Second
	tried := 0
	for _, offset := range []time.Duration{-window, 0, 20 * time.Second, window} {
		for _, delay := range []time.Duration{0, 29 * time.Second} {
			if offset-delay < -window {
				continue // no packet of the client is fresh when it arrives
			}
			for _, e := range endings() {
				for _, killed := range []bool{false, true} {
					name := fmt.Sprintf("clock %v, late by %v, %s, killed %v", offset, delay, e.name, killed)
					t.Run(name, func(t *testing.T) { tried += newFinal(t, offset, delay).try(e, killed) })
				}
			}
		}
	}
	t.Logf("%d packets", tried)
}

// try uses the server for a while, ends the access, and then delivers the packets that were held back.
func (f *final) try(e finale, killed bool) (tried int) {
	f.Helper()
	var granted []command
	for range 2 {
		for _, services := range asks {
			made := f.at.Add(-f.delay)
			c := f.command("alice", spa.TypeOpen, made, services...)
			if got := f.deliver(f.packet(c, made, "192.0.2.2"), f.at); got != spa.Granted {
				f.Fatalf("before the end: %v", got)
			}
			granted = append(granted, c)
			f.at = f.at.Add(time.Second / 2)
		}
	}
	answered := f.at
	packets := append(f.before(e, granted, answered), f.since(e, answered)...)
	e.do(f)
	if killed {
		f.kill()
	}
	slices.SortStableFunc(packets, func(a, b late) int { return a.at.Compare(b.at) })
	for _, l := range packets {
		if l.stamp.Sub(l.at).Abs() > f.s.config.Window {
			continue
		}
		tried++
		if got := f.deliver(l.packet, l.at); (got == spa.Granted) != l.granted {
			f.Errorf("%s, %v after the answer: %v", l.what, l.at.Sub(answered), got)
		}
	}
	return tried
}

// before makes packets that were first stamped before the end.
func (f *final) before(e finale, granted []command, answered time.Time) (list []late) {
	until := answered
	if e.closed != nil { // the client's own clock decides, and it made the close this long ago
		until = answered.Add(-f.delay)
	}
	add := func(c command, made, at time.Time, granted bool) {
		what := fmt.Sprintf("%s's %v of %v before", c.client, c.Services, until.Sub(made))
		list = append(list, late{what, f.packet(c, made, "192.0.2.2"), made.Add(f.offset), at, granted})
	}
	for _, after := range []time.Duration{0, 10 * time.Second, 29 * time.Second, 45 * time.Second, 60 * time.Second} {
		at := answered.Add(after)
		for _, age := range []time.Duration{0, 1, time.Second, 20 * time.Second, 29 * time.Second} {
			for _, services := range asks {
				made := until.Add(-age)
				add(f.command("alice", spa.TypeOpen, made, services...), made, at, !f.ended(e, services))
			}
			if e.everybody {
				made := until.Add(-age)
				add(f.command("bob", spa.TypeOpen, made, "ssh"), made, at, false)
			}
		}
	}
	// Packets of earlier grants: those that were held back, and the last that may be made for them.
	for i, c := range granted {
		made := until
		if i >= len(asks) {
			made = c.Time.Add(30*time.Second - f.offset)
		}
		add(c, made, made.Add(f.delay), !f.ended(e, service.Names(c.Services)))
	}
	return list
}

// since makes packets that the end does not affect.
func (f *final) since(e finale, answered time.Time) (list []late) {
	add := func(client, from string, made time.Time, services ...string) {
		what := fmt.Sprintf("%s's %v of %v since", client, services, made.Sub(answered))
		c := f.command(client, spa.TypeOpen, made, services...)
		list = append(list, late{what, f.packet(c, made, from), made.Add(f.offset), made, true})
	}
	made := answered.Add(1)
	if e.closed == nil { // stamped after everything that can have been stamped before
		made = made.Add(f.s.config.Window - f.offset)
	}
	for _, services := range asks {
		add("alice", "192.0.2.2", made, services...)
	}
	add("bob", "192.0.2.3", answered, "ssh")
	return list
}

// ended reports whether one of these services, or some of its ports, ended. If there are too many, everything counts as
// ended.
func (f *final) ended(e finale, services []string) bool {
	if e.closed == nil || slices.Contains(e.closed, "span") || slices.Contains(services, "span") {
		return true
	}
	return overlap(portsOf(f, e.closed, false), portsOf(f, services, false)) || overlap(portsOf(f, e.closed, true),
		portsOf(f, services, true))
}
