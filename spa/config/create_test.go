package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

const fleetID = "6a09e667f3bcc908b2fb1366ea957d3e"

const officeKey = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

func created(t *testing.T, dir string) Config {
	t.Helper()
	c := Default(dir)
	c.Name, c.Address, c.ServerID = "gw", "gw.example.net", keys.NewServerID()
	c.Services = []Service{{Name: "ssh", Ports: mustPorts(t, "tcp/22")}}
	return c
}

// settled returns changes of what init writes.
func settled(t *testing.T) map[string]func(*Config) {
	return map[string]func(*Config){
		"as init":     func(*Config) {},
		"no services": func(c *Config) { c.Services = nil },
		"no receipts": func(c *Config) { c.Receipts = false },
		"zeros": func(c *Config) {
			*c = Config{Name: c.Name, Address: c.Address, ServerID: c.ServerID, Services: []Service{}}
		},
		"all": func(c *Config) {
			c.Address, c.Window, c.State = "[2001:db8::1]:443", 90*time.Second, "/var/lib/spa"
			c.KnockPorts = []KnockPort{{62201, false}, {443, true}}
			c.Capture.Browser = true
			c.Capture.Interfaces, c.Capture.Gate = []string{"eth0", "br-lan"}, "socket"
			c.Firewall = Firewall{Backend: "dry-run", Mode: "guard", Closed: "reject", Persist: "file",
				TrustedInterfaces: []string{"lan"}, Mark: 1 << 8}
			c.Zone = "Asia/Kathmandu"
			c.Audit.File, c.Limits = "/var/log/spa.jsonl", Limits{1, 2, 3}
			c.Metrics = Metrics{Listen: "[::1]:9620", Clients: true}
			c.Services = []Service{
				{Name: "web", Ports: mustPorts(t, "tcp/443", "udp/443"), For: time.Hour,
					Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::5")}},
				{Name: "ssh", Ports: mustPorts(t, "tcp/22"), For: time.Second, MaxFor: time.Minute, OnExpiry: "cut", Once: true,
					When: []service.Span{{First: time.Saturday, Last: time.Monday, From: 0, To: 1440}}},
			}
		},
		"actions": func(c *Config) {
			c.Services = []Service{
				{Name: "restart", Action: Action{Run: []string{"/bin/a", `b "c`, ""}, User: "nobody", Timeout: time.Hour}},
				{Name: "ssh", Ports: mustPorts(t, "tcp/22"), Action: Action{Run: []string{"/bin/a"},
					After: []string{"/bin/b"}, User: "root"}},
			}
		},
		"forwarded": func(c *Config) {
			c.Services = []Service{
				{Name: "inner", Ports: mustPorts(t, "tcp/2222", "udp/2222"), Masquerade: true, Forward: []netip.AddrPort{
					netip.MustParseAddrPort("198.51.100.5:22"), netip.MustParseAddrPort("[2001:db8::5]:22")}},
				{Name: "other", Ports: mustPorts(t, "tcp/443"), OnExpiry: "cut",
					Forward: []netip.AddrPort{netip.AddrPortFrom(netip.Addr{}, 8443)}},
			}
		},
		"a fleet": func(c *Config) { c.Fleet = Fleet{ID: keys.NewFleetID(), Office: officeKey} },
		"a fleet by another way": func(c *Config) {
			c.Fleet = Fleet{ID: keys.NewFleetID(), Office: officeKey, Gateway: "web7", Bundle: "/var/lib/agent/web7.bundle",
				LocalClients: true, MaxAge: time.Hour}
		},
		"the journal": func(c *Config) { c.Audit = Audit{Journal: true} },
		"a socket": func(c *Config) {
			c.Metrics.Listen = "unix:/run/spa/metrics.sock"
		},
		"admit": func(c *Config) {
			c.Firewall.Mode, c.Firewall.Admit = "admit", Admit{Family: "inet", Table: "filter", Set4: "spa4", Set6: "spa6"}
		},
		"admit in one family": func(c *Config) {
			c.Firewall.Mode, c.Firewall.Admit = "admit", Admit{Family: "ip6", Table: "filter", Set6: "spa6"}
		},
	}
}

func TestCreateReadsBack(t *testing.T) {
	for name, change := range settled(t) {
		dir := t.TempDir()
		c := created(t, dir)
		change(&c)
		if err := Create(dir, c); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		back, err := Load(dir)
		if back != nil {
			back.read = nil
		}
		if want := c.filled(dir); err != nil || !reflect.DeepEqual(*back, want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, back, err, want)
		}
		fi, err := os.Stat(filepath.Join(dir, FileName))
		if err != nil || fi.Mode() != 0o640 {
			t.Errorf("%s: got %v, %v, want mode 0640", name, fi, err)
		}
		if err := Create(dir, c); !errors.Is(err, place.ErrExists) {
			t.Errorf("%s: got %v, want ErrExists", name, err)
		}
	}
}

func TestFilled(t *testing.T) {
	dir := t.TempDir()
	c := created(t, dir)
	c.Services[0].For = time.Hour
	filled := c.filled(dir)
	if got := filled.Services[0]; got.For != time.Hour || got.MaxFor != time.Hour {
		t.Errorf("got %+v", got)
	}
	if c.Services[0].MaxFor != 0 {
		t.Error("the caller's services were changed")
	}
}

// TestCreateRefuses: Create refuses settings that Load would refuse or read differently.
func TestCreateRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"name":       func(c *Config) { c.Name = "G W" },
		"injection":  func(c *Config) { c.Address = "gw\"\nreceipts = false\n#" },
		"no id":      func(c *Config) { c.ServerID = keys.ServerID{} },
		"relative":   func(c *Config) { c.State = "here" },
		"long":       func(c *Config) { c.Window = time.Hour },
		"a newline":  func(c *Config) { c.Name = "gw\nx" },
		"no ports":   func(c *Config) { c.Services[0].Ports = nil },
		"two alike":  func(c *Config) { c.Services = append(c.Services, c.Services[0]) },
		"knock port": func(c *Config) { c.KnockPorts = []KnockPort{{Port: 0}} },
	} {
		dir := t.TempDir()
		c := created(t, dir)
		change(&c)
		if err := Create(dir, c); err == nil {
			t.Errorf("%s: written", name)
		}
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("%s: left %v", name, entries)
		}
	}
}

// TestCommentsAreTrue uncomments the examples that the file offers, one by one: each is valid in its place.
func TestCommentsAreTrue(t *testing.T) {
	dir := t.TempDir()
	c := created(t, dir)
	c.Services = nil
	text := c.filled(dir).text()
	for _, examples := range [][]string{{"zone"}, {"browser"}, {"persist"}, {"tproxy"}, {"mark"},
		{"[metrics]", "listen"}, {"clients"},
		{"[service", "ports"}, {"for"}, {"max_for"}, {"addresses"}, {"on_expiry"}, {"once"}, {"when"},
		{"run =", "run_after", "user", "timeout"}} {
		for _, example := range examples {
			text = uncommented(t, text, example)
		}
		if _, err := loadText(t, text); err != nil {
			t.Fatalf("with %s: %v", examples, err)
		}
	}
	got := lab.Value(loadText(t, text))(t)
	want := []Service{{Name: "ssh", Ports: mustPorts(t, "tcp/22"), For: defaultFor, MaxFor: defaultMaxFor,
		OnExpiry: "cut", Once: true, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.5")},
		When: []service.Span{{First: time.Monday, Last: time.Friday, From: 8 * 60, To: 18 * 60}},
		Action: Action{Run: []string{"/usr/bin/systemctl", "restart", "apache2"}, After: []string{"/usr/local/bin/after"},
			User: "deploy", Timeout: time.Minute}}}
	if !reflect.DeepEqual(got.Services, want) || got.Firewall.Mark != 0x20000000 || got.Firewall.Persist != "file" ||
		got.Zone != "Europe/Berlin" || got.Metrics != (Metrics{"127.0.0.1:9620", true}) {
		t.Errorf("got %+v", got)
	}
}

// TestForwardCommentsAreTrue does the same for the examples of a forwarded service.
func TestForwardCommentsAreTrue(t *testing.T) {
	dir := t.TempDir()
	c := created(t, dir)
	c.Services = nil
	text := c.filled(dir).text()
	for _, example := range []string{"[service", "ports", "forward", "masquerade"} {
		text = uncommented(t, text, example)
	}
	got := lab.Value(loadText(t, text))(t).Services[0]
	if !reflect.DeepEqual(got.Forward, []netip.AddrPort{netip.MustParseAddrPort("198.51.100.5:22")}) || !got.Masquerade {
		t.Errorf("got %+v", got)
	}
}

// TestAdmitCommentsAreTrue does the same for the examples of admit mode, once it is chosen as they describe.
func TestAdmitCommentsAreTrue(t *testing.T) {
	dir := t.TempDir()
	text := created(t, dir).filled(dir).text()
	for _, example := range []string{"[firewall.admit]", "table", "set4", "set6"} {
		text = uncommented(t, text, example)
	}
	text = strings.Replace(text, `mode = "guard"`, `mode = "admit"`, 1)
	got := lab.Value(loadText(t, text))(t)
	if want := (Admit{Family: "inet", Table: "filter", Set4: "spa4", Set6: "spa6"}); got.Firewall.Admit != want {
		t.Errorf("got %+v, want %+v", got.Firewall.Admit, want)
	}
}

// TestFleetCommentsAreTrue does the same for the examples of a fleet.
func TestFleetCommentsAreTrue(t *testing.T) {
	dir := t.TempDir()
	text := created(t, dir).filled(dir).text()
	for _, example := range []string{"[fleet]", "id =", "office", "gateway", "bundle", "taken", "local_clients", "max_age",
		"share", "standalone"} {
		text = uncommented(t, text, example)
	}
	got := lab.Value(loadText(t, text))(t)
	want := Fleet{ID: lab.Value(keys.ParseFleetID(fleetID))(t), Office: officeKey, Gateway: "web7",
		Bundle: filepath.Join(got.Dir, BundleFile), Taken: filepath.Join(got.State, TakenFile), LocalClients: true, MaxAge: defaultMaxAge,
		Share: filepath.Join(got.State, ShareFile), Standalone: StandaloneRefuse}
	if got.Fleet != want {
		t.Errorf("got %+v, want %+v", got.Fleet, want)
	}
}

// TestEveryExampleIsTried: every comment that looks like a setting is tried by the tests above.
func TestEveryExampleIsTried(t *testing.T) {
	dir := t.TempDir()
	c := created(t, dir)
	c.Services = nil
	tried := []string{"zone", "persist", "tproxy", "mark", "[service.ssh]", "ports", "for", "max_for", "addresses",
		"on_expiry", "once", "when", "[firewall.admit]", "table", "set4", "set6", "[metrics]", "listen", "clients",
		"run", "run_after", "user", "timeout", "forward", "masquerade", "browser", "[fleet]", "id", "office",
		"gateway", "bundle", "taken", "local_clients", "max_age", "share", "standalone"}
	for line := range strings.Lines(c.filled(dir).text()) {
		example, ok := strings.CutPrefix(line, "# ")
		word, _, _ := strings.Cut(example, " ")
		if ok && (strings.HasPrefix(word, "[") || strings.HasPrefix(example, word+" = ")) && !slices.Contains(tried, word) {
			t.Errorf("no test takes the comment sign from: %s", line)
		}
	}
}

func uncommented(t *testing.T, text, example string) string {
	t.Helper()
	if !strings.Contains(text, "\n# "+example) {
		t.Fatalf("%q is not in\n%s", example, text)
	}
	return strings.Replace(text, "\n# "+example, "\n"+example, 1)
}
