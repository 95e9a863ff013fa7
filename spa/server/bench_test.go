package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/policy"
	"sallyport/spa/recovery"
	"sallyport/spa/replay"
	"sallyport/spa/server/control"
	"sallyport/spa/server/feed"
	"sallyport/spa/server/setup"
)

// newLine returns a server that decides for one client, and what that client needs. Everything is real except the
// sockets and the firewall, which is a dry run.
func newLine(tb testing.TB) (*Server, spa.Sender) {
	tb.Helper()
	dir := tb.TempDir()
	c := config.Default(dir)
	ssh, err := service.ParsePorts("tcp/22")
	lab.Must(tb, err)
	c.ServerID, c.Services = keys.NewServerID(), []config.Service{config.NewService("ssh", ssh)}
	c.Limits = config.Limits{LiveNonces: 4096, Grants: 64, GrantsPerHour: 10_000_000}
	c.Firewall.Backend = "dry-run"
	gate := keys.NewGateKey()
	client := &keys.Client{Name: "alice", ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"ssh"}}
	lab.Must(tb, keys.WriteClient(dir, client, true))
	s := &Server{config: &c, now: time.Now, log: slog.New(slog.DiscardHandler), seen: newSightings(), feed: feed.New()}
	s.identity = spa.Identity{Server: c.ServerID, Gates: []spa.Gate{{Key: gate}}, Window: c.Window}
	s.clients, _ = keys.LoadRegistry(dir)
	s.journal, err = replay.Open(filepath.Join(dir, "journal"), replay.Config{Window: c.Window, LiveNonces: 4096},
		time.Now().Add(-time.Hour))
	lab.Must(tb, err)
	s.uses = openBook(dir)
	s.audit = lab.Value(audit.Open(filepath.Join(dir, "audit"), s.log))(tb)
	s.firewall = lab.Value(firewall.New(setup.FirewallConfig(&c, s.clients, time.Now), s.log))(tb)
	lab.Must(tb, s.firewall.Load(context.Background(), 0, time.Now()))
	s.policy = policy.New(&c, s.firewall)
	tb.Cleanup(func() { s.journal.Close(); s.uses.Close(); s.audit.Close(); s.firewall.Close() })
	return s, spa.Sender{Server: c.ServerID, Gate: gate, ID: client.ID, Key: client.Key}
}

func openBook(dir string) *recovery.Book {
	open := func() (*os.File, error) { return recovery.OpenFile(filepath.Join(dir, config.RecoveryFile)) }
	return recovery.New(open, open)
}

func arriving(data []byte) capture.Packet {
	return capture.Packet{Data: data, From: netip.MustParseAddrPort("192.0.2.2:40000"),
		To: netip.MustParseAddrPort("192.0.2.1:62201")}
}

func sealed(tb testing.TB, s spa.Sender) []byte {
	tb.Helper()
	packet, err := spa.Seal(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: time.Now(),
		Services: []service.Service{{Name: "ssh"}}}, s)
	lab.Must(tb, err)
	return packet
}

// BenchmarkTake runs the whole line without the sockets and the kernel's firewall, on the packets of a flood.
func BenchmarkTake(b *testing.B) {
	s, sender := newLine(b)
	good := sealed(b, sender)
	badBody := append(good[:60:60], make([]byte, len(good)-60)...)
	noise := make([]byte, len(good))
	for name, data := range map[string][]byte{"noise": noise, "bad-body": badBody, "copy": good} {
		b.Run(name, func(b *testing.B) {
			packet := arriving(data)
			s.process(context.Background(), arriving(good))
			b.ReportAllocs()
			for b.Loop() {
				s.process(context.Background(), packet)
			}
		})
	}
}

// BenchmarkListing measures a client of the control socket that asks for 100,000 live grants, until the first and until
// all are there.
func BenchmarkListing(b *testing.B) {
	const live = 100_000
	s, _ := newLine(b)
	for i := range live {
		g := firewall.Grant{Client: fmt.Sprintf("c%d", i%1000), Service: "ssh", Until: time.Now().Add(time.Hour),
			Source: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
			Ports:  []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}}
		lab.Must(b, s.firewall.Grant(b.Context(), []firewall.Grant{g}, time.Now()))
	}
	controlled(b, s)
	var first time.Duration
	for b.Loop() {
		n, start := 0, time.Now()
		client := lab.Value(control.Dial(s.config.State))(b)
		lab.Must(b, client.Ask(b.Context(), control.Request{Command: control.CommandGrants}, func(control.Reply) error {
			if n++; n == 1 {
				first += time.Since(start)
			}
			return nil
		}))
		client.Close()
		if n != live {
			b.Fatalf("got %d grants", n)
		}
	}
	b.ReportMetric(first.Seconds()*1000/float64(b.N), "ms-to-first")
}
