package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/action"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/policy"
	"sallyport/spa/server/setup"
)

// A bench is a server made by newLine, and the settings that tests change on it.
type bench struct {
	testing.TB
	s      *Server
	sender spa.Sender
	client *keys.Client
	at     time.Time
	event  audit.Event // of the last packet
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{TB: t, at: time.Now().Round(0)}
	b.s, b.sender = newLine(t)
	b.s.now = func() time.Time { return b.at }
	b.client, _ = b.s.clients.Client("alice")
	return b
}

// rule replaces the policy by that of a changed configuration.
func (b *bench) rule(change func(c *config.Config)) {
	c := *b.s.config
	c.Services = slices.Clone(c.Services)
	change(&c)
	b.s.config, b.s.policy = &c, policy.New(&c, b.s.firewall)
}

// enrol applies change to alice's client.
func (b *bench) enrol(change func(c *keys.Client)) {
	b.Helper()
	c := *b.client
	change(&c)
	lab.Must(b, keys.WriteClient(b.s.config.Dir, &c, false))
	_, err := b.s.clients.Reload("alice")
	lab.Must(b, err)
}

// ask sends a request for these services, and returns it.
func (b *bench) ask(services ...string) spa.Request {
	b.Helper()
	r := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at}
	for _, text := range services {
		service := lab.Value(service.ParseService(text))(b)
		r.Services = append(r.Services, service)
	}
	b.take(r)
	return r
}

// take sends a request in a packet of its own.
func (b *bench) take(r spa.Request) {
	b.Helper()
	b.arrive(arriving(b.seal(r)))
}

// arrive delivers a packet.
func (b *bench) arrive(p capture.Packet) {
	b.event = b.s.handle(context.Background(), p)
	b.s.audit.Record(b.event)
}

func (b *bench) seal(r spa.Request) []byte {
	b.Helper()
	packet := lab.Value(spa.Seal(r, b.sender))(b)
	return packet
}

// last returns the last line of the audit log.
func (b *bench) last() (verdict, reason string) {
	b.Helper()
	data := lab.Value(os.ReadFile(filepath.Join(b.s.config.Dir, "audit")))(b)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	var line struct{ Verdict, Reason string }
	lab.Must(b, json.Unmarshal([]byte(lines[len(lines)-1]), &line))
	return line.Verdict, line.Reason
}

// wide adds services of 1024 ports each, the maximum: w0, w1 and so on.
func wide(n int) func(c *config.Config) {
	return func(c *config.Config) {
		for i := range n {
			low := uint16(1 + 1024*i)
			c.Services = append(c.Services, config.NewService(fmt.Sprintf("w%d", i), service.Ports{Proto: service.UDP,
				Low: low, High: low + 1023}))
		}
	}
}

func wideNames(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("w%d", i)
	}
	return list
}

// idle is a firewall without a guard in place: it grants nothing, and ends nothing.
func idle(b *bench) *firewall.Firewall {
	b.Helper()
	f := lab.Value(firewall.New(setup.FirewallConfig(b.s.config, b.s.clients, b.s.now), b.s.log))(b)
	b.Cleanup(func() { f.Close() })
	return f
}

// withActions starts what runs the programs of services.
func (b *bench) withActions() (file string) {
	b.Helper()
	lab.NeedRoot(b)
	c := config.Default(b.TempDir())
	c.Name, c.Address, c.ServerID, c.Services = "gw", "192.0.2.1", b.s.config.ServerID, b.s.config.Services
	lab.Must(b, config.Create(c.Dir, c))
	read := lab.Value(config.Load(c.Dir))(b)
	f := lab.Value(action.OpenFile(filepath.Join(c.Dir, config.ActionsFile)))(b)
	book := lab.Value(action.Open(read, action.Options{File: f, Held: b.s.heldBy, Report: b.s.programs, Now: b.s.now}))(b)
	b.Cleanup(func() { book.Close() })
	lab.Must(b, book.Recover())
	b.s.actions = book
	return f.Name()
}

// denials cause each reason that a receipt can give. The last packet is refused for it.
var denials = map[spa.Status]func(b *bench){
	spa.ReasonExpired: func(b *bench) {
		b.enrol(func(c *keys.Client) { c.Expires = b.at.Add(-time.Hour).UTC() })
		b.ask("ssh")
	},
	spa.ReasonNoService: func(b *bench) { b.ask("nothing") },
	spa.ReasonNotAllowed: func(b *bench) {
		b.rule(wide(1))
		b.ask("w0")
	},
	spa.ReasonSourceRequired: func(b *bench) {
		b.enrol(func(c *keys.Client) { c.RequireSource = true })
		b.ask("ssh")
	},
	spa.ReasonTooManyGrants: func(b *bench) {
		b.rule(func(c *config.Config) { wide(1)(c); c.Limits.Grants = 1 })
		b.enrol(func(c *keys.Client) { c.Allow = []string{"ssh", "w0"} })
		b.ask("ssh")
		b.ask("w0")
	},
	spa.ReasonTooManyPerHour: func(b *bench) {
		b.rule(func(c *config.Config) { c.Limits.GrantsPerHour = 1 })
		b.ask("ssh")
		b.ask("ssh")
	},
	spa.ReasonSuperseded: func(b *bench) {
		late := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at,
			Services: []service.Service{{Name: "ssh"}}}
		b.at = b.at.Add(time.Second)
		b.take(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeClose, Time: b.at, Services: late.Services})
		b.take(late)
	},
	spa.ReasonIDReused: func(b *bench) {
		r := b.ask("ssh")
		r.For = time.Minute
		b.take(r)
	},
	spa.ReasonFailed: func(b *bench) {
		b.s.firewall = idle(b)
		b.ask("ssh")
	},
	spa.ReasonNotNow: func(b *bench) {
		tomorrow := b.at.AddDate(0, 0, 1).Weekday()
		b.rule(func(c *config.Config) {
			c.Services[0].When = []service.Span{{First: tomorrow, Last: tomorrow, To: 24 * 60}}
		})
		b.ask("ssh")
	},
	spa.ReasonTooManyPorts: func(b *bench) {
		b.rule(wide(8))
		b.enrol(func(c *keys.Client) { c.Allow = append(wideNames(8), "ssh") })
		b.ask(wideNames(8)...)
		if verdict, reason := b.last(); verdict != "granted" {
			b.Fatalf("all that a client may have at once: %s: %s", verdict, reason)
		}
		b.ask("ssh")
	},
	spa.ReasonNoProgram: func(b *bench) {
		b.rule(func(c *config.Config) {
			s := config.NewService("act")
			s.Action = config.Action{Run: []string{"/nowhere/at/all"}, User: "root", Timeout: time.Minute}
			c.Services = append(c.Services, s)
		})
		b.enrol(func(c *keys.Client) { c.Allow = []string{"act"} })
		b.withActions()
		b.ask("act")
	},
	spa.ReasonNoUses: func(b *bench) {
		b.limit(1)
		b.ask("ssh")
		b.ask("ssh")
	},
	spa.ReasonNetwork: func(b *bench) {
		b.enrol(func(c *keys.Client) { c.Widest4 = 25 })
		r := b.ask("ssh")
		r.ID, r.LetIn = spa.NewRequestID(), netip.MustParsePrefix("192.0.2.0/24")
		b.take(r)
	},
	spa.ReasonOtherFamily: func(b *bench) {
		b.rule(func(c *config.Config) { c.Services[0].Addresses = []netip.Addr{netip.MustParseAddr("2001:db8::5")} })
		b.ask("ssh")
	},
}

// TestEveryReason: each reason for a denial can occur, and has its own words in the audit log, the receipt and the
// client.
func TestEveryReason(t *testing.T) {
	said := make(map[string]spa.Status)
	for status := spa.ReasonExpired; !strings.HasPrefix(status.String(), "status "); status++ {
		if status == spa.ReasonTooEarly {
			continue // such a packet is not spent, and so has no line in the log: TestTooEarly
		}
		deny, ok := denials[status]
		if !ok {
			t.Errorf("no test makes the reason %d come up: %v", status, status)
			continue
		}
		t.Run(status.String(), func(t *testing.T) {
			b := newBench(t)
			deny(b)
			if got := b.event.Receipt.Status; got != status {
				t.Errorf("the receipt says: %v", got)
			}
			verdict, reason := b.last()
			want := "denied"
			if status == spa.ReasonFailed || status == spa.ReasonNoProgram {
				want = "failed"
			}
			if verdict != want || reason == "" {
				t.Errorf("the audit log says %s: %q, want %s and why", verdict, reason, want)
			}
			if other, ok := said[reason]; ok {
				t.Errorf("the audit log says %q of this and of: %v", reason, other)
			}
			said[reason] = status
		})
	}
	if len(denials) != len(said) {
		t.Errorf("%d reasons were tried, %d have words", len(denials), len(said))
	}
}
