package check

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// weakenings switches on each setting that SECURITY.md lists as weakening.
var weakenings = map[string]struct {
	config  func(*config.Config)
	client  keys.Client
	after   func(t *testing.T, c *config.Config)
	subject string
}{
	"`require_source` not set for a client": {client: keys.Client{Allow: []string{"ssh"}}, subject: "require_source"},
	"`widest4`, `widest6` or `delegate` of a client": {client: keys.Client{Allow: []string{"ssh"}, Widest4: 24},
		subject: "widest4"},
	"`window` longer than 30 s": {config: func(c *config.Config) { c.Window = time.Minute },
		subject: "window"},
	"`trusted_interfaces`": {config: func(c *config.Config) { c.Firewall.TrustedInterfaces = []string{"eth0"} },
		subject: "firewall.trusted_interfaces"},
	"`browser = true`":         {config: func(c *config.Config) { c.Capture.Browser = true }, subject: "capture.browser"},
	"`capture.gate = \"xdp\"`": {config: func(c *config.Config) { c.Capture.Gate = "xdp" }, subject: "capture.gate"},
	"`tproxy = true`":          {config: func(c *config.Config) { c.Firewall.TPROXY = true }, subject: "firewall.tproxy"},
	"`capture.mode = \"udp\"`": {config: func(c *config.Config) { c.Capture.Mode = "udp" }, subject: "capture.mode"},
	"`backend = \"dry-run\"`": {config: func(c *config.Config) { c.Firewall.Backend = "dry-run" },
		subject: "firewall.backend"},
	"iptables": {config: func(c *config.Config) { c.Firewall.Backend = "iptables" }, subject: "firewall.backend"},
	"`persist = \"file\"`": {config: func(c *config.Config) { c.Firewall.Persist = "file" },
		subject: "firewall.persist"},
	"`mode = \"admit\"`": {config: admit, subject: "firewall.mode"},
	"`user = \"root\"`, or `\"spa\"`, of a service with a program": {config: func(c *config.Config) {
		s := config.NewService("act")
		s.Action = config.Action{Run: []string{"/bin/sh"}, User: "root", Timeout: time.Minute}
		c.Services = append(c.Services, s)
	}, subject: "service.act.user"},
	"`standalone = \"local\"`": {config: func(c *config.Config) {
		c.Fleet = config.Fleet{ID: keys.NewFleetID(), Office: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
			Standalone: config.StandaloneLocal}
	}, subject: "fleet.standalone"},
	"`masquerade = true`": {config: func(c *config.Config) {
		forwardedTo("198.51.100.5:22")(c)
		c.Services[len(c.Services)-1].Masquerade = true
	}, subject: "service.inner.masquerade"},
	"a long `--overlap`": {after: func(t *testing.T, c *config.Config) {
		_, err := keys.ChangeClient(filepath.Join(c.Dir, config.ClientsDir), "alice", func(client *keys.Client) error {
			client.Rotate(now.Add(keys.ClientOverlap + time.Minute))
			return nil
		})
		lab.Must(t, err)
	}, subject: "previous"},
}

// forwardedTo adds a service whose port leads there.
func forwardedTo(to ...string) func(*config.Config) {
	return func(c *config.Config) {
		s := config.NewService("inner", service.Ports{Proto: service.TCP, Low: 2222, High: 2222})
		for _, a := range to {
			s.Forward = append(s.Forward, netip.MustParseAddrPort(a))
		}
		if len(to) == 0 {
			s.Forward = []netip.AddrPort{netip.AddrPortFrom(netip.Addr{}, 8022)}
		}
		c.Services = append(c.Services, s)
	}
}

func admit(c *config.Config) {
	c.Firewall.Mode = "admit"
	c.Firewall.Admit = config.Admit{Family: "inet", Table: "filter", Set4: "open4", Set6: "open6"}
}

// TestNamesEachWeakening: check reports each setting of the gateway that SECURITY.md lists as weakening, as a warning
// and with advice, and none of them on a gateway without.
func TestNamesEachWeakening(t *testing.T) {
	page := string(lab.Value(os.ReadFile("../../SECURITY.md"))(t))
	_, table, _ := strings.Cut(page, "### Settings that weaken\n")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := 0
	for line := range strings.Lines(table) {
		name, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		if !ok || name == "setting" || strings.HasSuffix(name, "(client)") {
			continue
		}
		rows++
		t.Run(name, func(t *testing.T) {
			w, ok := weakenings[name]
			if !ok {
				t.Fatal("no case of this test switches it on")
			}
			for _, on := range []bool{false, true} {
				if got := namedOn(t, on, w.config, w.client, w.after, w.subject); got != on {
					t.Errorf("on: %v, reported: %v", on, got)
				}
			}
		})
	}
	if rows != len(weakenings) {
		t.Errorf("SECURITY.md has %d rows, this test %d", rows, len(weakenings))
	}
}

// namedOn reports whether check warns of subject, with a weakening switched on or not.
func namedOn(t *testing.T, on bool, change func(*config.Config), client keys.Client,
	after func(*testing.T, *config.Config), subject string) bool {
	t.Helper()
	if !on {
		change, client, after = nil, keys.Client{RequireSource: true}, nil
	}
	client.RequireSource = client.RequireSource || subject != "require_source"
	c := initialised(t, change, client)
	if after != nil {
		after(t, c)
	}
	found := examine(t.Context(), c.Dir, now, quietHost())
	pasteable(t, found)
	for _, f := range found {
		if f.Severity == Warning && f.Subject == subject {
			return true
		}
	}
	return false
}

// TestLongGateOverlap: a gate key that was replaced and stays valid for long is reported.
func TestLongGateOverlap(t *testing.T) {
	for overlap, want := range map[time.Duration]bool{keys.GateOverlap: false, keys.GateOverlap + time.Second: true} {
		c := initialised(t, nil, keys.Client{RequireSource: true})
		_, err := keys.ChangeGates(filepath.Join(c.Dir, config.GateFile), func(g *keys.Gates) error {
			g.Rotate(now.Add(overlap))
			return nil
		})
		lab.Must(t, err)
		found := examine(t.Context(), c.Dir, now, quietHost())
		pasteable(t, found)
		if says(found, Warning, []string{config.GateFile, "until 2026-03-31"}) != want {
			t.Errorf("%v: got %+v", overlap, found)
		}
	}
}
