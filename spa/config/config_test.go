package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

const serverID = "000102030405060708090a0b0c0d0e0f"

// least is the shortest file that Load accepts.
const least = "version = 1\nname = \"gw\"\naddress = \"192.0.2.1\"\nserver_id = \"" + serverID + "\"\n"

func loadText(t *testing.T, text string) (*Config, error) {
	t.Helper()
	dir := t.TempDir()
	lab.Must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(text), 0o640))
	return Load(dir)
}

func mustPorts(t *testing.T, texts ...string) []service.Ports {
	t.Helper()
	var list []service.Ports
	for _, text := range texts {
		p := lab.Value(service.ParsePorts(text))(t)
		list = append(list, p)
	}
	return list
}

func TestDefaults(t *testing.T) {
	c := lab.Value(loadText(t, least+sshService))(t)
	want := Config{
		Dir: c.Dir, Name: "gw", Address: "192.0.2.1", ServerID: keys.ServerID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
			14, 15},
		KnockPorts: []KnockPort{{Port: 62201}}, Window: 30 * time.Second, Receipts: true, State: c.Dir,
		Capture:  Capture{Mode: "sniff", Gate: "auto"},
		Firewall: Firewall{Backend: "auto", Mode: "guard", Closed: "drop", Persist: "owner"},
		Audit:    Audit{File: filepath.Join(c.Dir, "audit.jsonl")},
		Limits:   Limits{LiveNonces: 256, Grants: 64, GrantsPerHour: 1000},
		Services: []Service{{Name: "ssh", Ports: mustPorts(t, "tcp/22"), For: 30 * time.Second, MaxFor: 10 * time.Minute,
			OnExpiry: "keep"}},
	}
	want.read = c.read
	if !reflect.DeepEqual(*c, want) {
		t.Errorf("got %+v\nwant %+v", *c, want)
	}
}

const everySetting = `version = 1
name = "office-1"
address = "[2001:db8::1]:443"
server_id = "` + serverID + `"
knock_ports = [ # several
  62201,
  { port = 443, shared = true },
  { port = 53 },
]
window = "1m30s"
receipts = false
state = "/var/lib/spa"
zone = "Europe/Berlin"
[capture]
mode = "sniff"
interfaces = ["eth0", "wg0"]
gate = "xdp"
[firewall]
backend = "dry-run"
mode = "guard"
closed = "reject"
persist = "file"
trusted_interfaces = ["br-lan"]
mark = 0x80000000
[audit]
file = "log/audit.jsonl"
[limits]
live_nonces = 4096
grants = 1
grants_per_hour = 10_000_000
[service.web]
ports = ["tcp/443", "udp/443"]
for = "1h"
addresses = ["198.51.100.5", "2001:db8::5"]
on_expiry = "cut"
when = ["mon-fri 08:00-18:00", "fri 22:00-02:00"]
[service.ssh]
ports = ["tcp/22", "tcp/60000-60010"]
max_for = "10s"
`

func TestLoadAll(t *testing.T) {
	c, err := loadText(t, everySetting)
	lab.Must(t, err)
	want := Config{
		Dir: c.Dir, Name: "office-1", Address: "[2001:db8::1]:443", ServerID: c.ServerID,
		KnockPorts: []KnockPort{{62201, false}, {443, true}, {53, false}}, Window: 90 * time.Second, State: "/var/lib/spa",
		Zone:    "Europe/Berlin",
		Capture: Capture{Mode: "sniff", Interfaces: []string{"eth0", "wg0"}, Gate: "xdp"},
		Firewall: Firewall{Backend: "dry-run", Mode: "guard", Closed: "reject", Persist: "file",
			TrustedInterfaces: []string{"br-lan"}, Mark: 1 << 31},
		Audit:  Audit{File: "/var/lib/spa/log/audit.jsonl"},
		Limits: Limits{LiveNonces: 4096, Grants: 1, GrantsPerHour: 10_000_000},
		Services: []Service{
			{Name: "ssh", Ports: mustPorts(t, "tcp/22", "tcp/60000-60010"), For: 10 * time.Second, MaxFor: 10 * time.Second,
				OnExpiry: "keep"},
			{Name: "web", Ports: mustPorts(t, "tcp/443", "udp/443"), For: time.Hour, MaxFor: time.Hour,
				Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("2001:db8::5")}, OnExpiry: "cut",
				When: []service.Span{{First: time.Monday, Last: time.Friday, From: 480, To: 1080},
					{First: time.Friday, Last: time.Friday, From: 1320, To: 120}}},
		},
	}
	want.read = c.read
	if !reflect.DeepEqual(*c, want) {
		t.Errorf("got %+v\nwant %+v", *c, want)
	}
	if s, ok := c.Service("web"); !ok || s.Name != "web" {
		t.Errorf("got %v, %v", s, ok)
	}
	if s, ok := c.Service("mail"); ok || s.Name != "" {
		t.Errorf("got %v, %v", s, ok)
	}
	if got := c.Guarded(); !reflect.DeepEqual(got, mustPorts(t, "tcp/22", "tcp/443", "tcp/60000-60010", "udp/443")) {
		t.Errorf("got %v", got)
	}
}

const sshService = "[service.ssh]\nports = [\"tcp/22\"]\n"

var refusedSettings = map[string]string{
	"windw = '30s'":                            `:5: windw: unknown key (did you mean "window"?)`,
	"window = 30":                              ":5: window: should be text in quotes",
	"window = '999ms'":                         ":5: window: a duration is 1s to",
	"window = '10m1s'":                         ":5: window: must be at most 10m",
	"receipts = 'no'":                          ":5: receipts: should be true or false",
	"state = ''":                               ":5: state: should be a path",
	"knock_ports = []":                         ":5: knock_ports: should be 1 to 32 ports",
	"knock_ports = 62201":                      ":5: knock_ports: should be a list",
	"knock_ports = [0]":                        ":5: knock_ports: each entry is a port",
	"knock_ports = [65536]":                    ":5: knock_ports: each entry is a port",
	"knock_ports = ['1']":                      ":5: knock_ports: each entry is a port",
	"knock_ports = [{}]":                       ":5: knock_ports: each entry is a port",
	"knock_ports = [1, {port = 1}]":            ":5: knock_ports: port 1 is listed twice",
	"knock_ports = [1,\n{port=2, shred=true}]": `:6: knock_ports.1.shred: unknown key (did you mean "shared"?)`,
	"knock_ports = [1,\n{port=2, shared=1}]":   ":6: knock_ports.1.shared: should be true or false",
	"[capture]\nmode = 'tap'":                  `:6: capture.mode: should be "sniff" or "udp"`,
	"[capture]\ninterfaces = ['']":             ":6: capture.interfaces: entry 1: the name of an interface has",
	"[capture]\ninterfaces = ['eth0', 'eth0']": ":6: capture.interfaces: entry 2 is listed twice",
	"[capture]\ninterfaces = ['a/b']":          ":6: capture.interfaces: entry 1: the name of an interface may contain",
	"[firewall]\nbackend = 'nftable'": `:6: firewall.backend: should be "auto" or "nftables" or "iptables" or ` +
		`"dry-run" (did you mean "nftables"?)`,
	"[firewall]\nmode = 'open'":    `:6: firewall.mode: should be "guard" or "admit"`,
	"[firewall]\npersist = 'yes'":  `:6: firewall.persist: should be "owner" or "file"`,
	"[firewall]\nclosed = 'dropp'": `:6: firewall.closed: should be "drop" or "reject" (did you mean "drop"?)`,
	"[firewall]\ntrusted_interfaces = ['sixteen-letters-']": ":6: firewall.trusted_interfaces: entry 1: the name of " +
		"an interface has",
	"[firewall]\nmark = 0":                    ":6: firewall.mark: should be one bit",
	"[firewall]\nmark = 3":                    ":6: firewall.mark: should be one bit",
	"[firewall]\nmark = 0x100000000":          ":6: firewall.mark: should be one bit",
	"[firewall]\nmark = -9223372036854775808": ":6: firewall.mark: should be one bit",
	"[firewall]\nwindow = '30s'": ":6: firewall.window: unknown key here; it belongs " +
		"above the first [table]",
	"[audit]\nfile = ''":             ":6: audit.file: should be a path",
	"[limits]\nlive_nonces = 0":      ":6: limits.live_nonces: should be 1 to 4096",
	"[limits]\ngrants = 65537":       ":6: limits.grants: should be 1 to 4096",
	"[limits]\ngrants_per_hour = -1": ":6: limits.grants_per_hour: should be 1 to",
	"[service.wide]\nports = [\"tcp/1-1000\", \"udp/1-25\"]": ":6: service.wide.ports: has 1025 ports; a service has " +
		"at most 1024",
	"[limits]\ngrant = 1":                                `:6: limits.grant: unknown key (did you mean "grants"?)`,
	"[service.SSH]\nports = ['tcp/22']":                  ":5: service.SSH: a name may contain",
	"[service.ssh]":                                      ":5: service.ssh.ports: should be 1 to 64 ports",
	"[service.ssh]\nports = []":                          ":6: service.ssh.ports: should be 1 to 64 ports",
	"[service.a]\nrun = ['true']\nuser = 'nobody'":       ":6: service.a.run: should be the absolute path of a program",
	"[service.a]\nrun = []\nuser = 'nobody'":             ":6: service.a.run: should be the absolute path of a program",
	"[service.a]\nrun = ['/bin/../true']\nuser='nobody'": ":6: service.a.run: should be the absolute path of a program",
	"[service.a]\nrun = ['/b', \"\\u0000\"]\nuser = 'a'": ":6: service.a.run: has a zero byte",
	"[service.a]\nrun_after = ['/bin/true']":             ":5: service.a.user: missing: write who runs the program",
	"[service.a]\nrun = ['/bin/true']\nuser = ''":        ":7: service.a.user: should be the name of a user",
	"[service.a]\nrun = ['/bin/true']\nuser = 'a b'":     ":7: service.a.user: should be the name of a user",
	sshService + "user = 'nobody'": ":7: service.ssh.user: has an effect only with run or " +
		"run_after",
	sshService + "timeout = '1m'":                           ":7: service.ssh.timeout: has an effect only with run",
	sshService + "run = ['/b']\nuser = 'a'\ntimeout = '2h'": ":9: service.ssh.timeout: must be at most 1h",
	"[service.a]\nrun=['/b']\nuser='a'\non_expiry='cut'":    ":8: service.a.on_expiry: has no effect on a service without",
	"[service.a]\nrun=['/b']\nuser='a'\naddresses=['::1']":  ":8: service.a.addresses: has no effect on a service without",
	"[service.ssh]\nports = ['22']":                         ":6: service.ssh.ports: ports \"22\"",
	"[service.ssh]\nports = ['tcp/20-30', 'tcp/30']":        ":6: service.ssh.ports: tcp/20-30 and tcp/30 overlap",
	"[service.dns]\nports = ['udp/62000-63000']": ":6: service.dns.ports: udp/62201 is a knock port: choose another, " +
		"or { port = 62201, shared = true }",
	sshService + "on_expiry = 'kill'":                          `:7: service.ssh.on_expiry: should be "keep" or "cut"`,
	sshService + "once = 'yes'":                                ":7: service.ssh.once: ",
	sshService + "once = true\nmax_for = '145h'":               ":8: service.ssh.max_for: must be at most 144h",
	sshService + "once = true\n[firewall]\nbackend='iptables'": ":7: service.ssh.once: needs nftables: remove it, or",
	sshService + "once = true\n[firewall]\nmode='admit'\n[firewall.admit]\ntable='inet f'\nset4='s'": ":7: service.ssh" +
		".once: works with firewall.mode = \"guard\" only",
	"receipts = false\n" + sshService + "[capture]\nbrowser = true": ":9: capture.browser: needs receipts = true",
	"receipts = false\n" + sshService + "once = true":               ":8: service.ssh.once: needs receipts = true",
	"[service.a]\nrun=['/b']\nuser='a'\nonce=true":                  ":8: service.a.once: has no effect on a service without",
	sshService + "[service.a]\nports=['tcp/22']\nonce = true": ":5: service.ssh.once: a guards the same port and " +
		"says true",
	sshService + "when = []": ":7: service.ssh.when: should be 1 to 32 spans: [\"mon-fri " +
		"08:00-18:00\"]",
	sshService + "when = ['mon-fri 8:00-18:00']": ":7: service.ssh.when: entry 1: days and hours are written \"mon-fri " +
		"08:00-18:00\"",
	sshService + "when = ['sat 09:00-12:00','sat 09:00-12:00']": ":7: service.ssh.when: entry 2 is listed twice",
	sshService + "[service.a]\nports=['tcp/1-22']\non_expiry='cut'": ":5: service.ssh.on_expiry: a guards the same " +
		"port and says \"cut\"",
	"zone = 'Berlin'":                                     `:5: zone: should be the name of a time zone, such as`,
	"zone = ''":                                           ":5: zone: should be the name of a time zone",
	"zone = 'Local'":                                      ":5: zone: should be the name of a time zone",
	"zone = '../zoneinfo/UTC'":                            ":5: zone: should be the name of a time zone",
	sshService + "for = '0s'":                             ":7: service.ssh.for: a duration is 1s to",
	sshService + "for = ''":                               ":7: service.ssh.for: a duration is written",
	sshService + "max_for = '1001h'":                      ":7: service.ssh.max_for: a duration is 1s to",
	sshService + "for = '2s'\nmax_for = '1s'":             ":7: service.ssh.for: must not be longer than max_for",
	sshService + "addresses = ['gw']":                     ":7: service.ssh.addresses: entry 1 is not an address",
	sshService + "addresses = ['192.0.2.0/24']":           ":7: service.ssh.addresses: entry 1 is not an address",
	sshService + "addresses = ['::ffff:192.0.2.1']":       ":7: service.ssh.addresses: entry 1 is not an address",
	sshService + "addresses = ['192.0.2.9', '224.0.0.1']": ":7: service.ssh.addresses: entry 2 is a multicast address",
	sshService + "addresses = ['ff02::1']":                ":7: service.ssh.addresses: entry 1 is a multicast address",
	sshService + "addresses = ['169.254.1.1']":            ":7: service.ssh.addresses: entry 1 is link-local",
	sshService + "addresses = ['fe80::1']":                ":7: service.ssh.addresses: entry 1 is link-local",
	sshService + "addresses = ['::1', '0::1']":            ":7: service.ssh.addresses: entry 2 is listed twice",
}

// TestLoadRefuses adds text to the least file, which has four lines, and checks the error.
func TestLoadRefuses(t *testing.T) {
	for add, want := range refusedSettings {
		c, err := loadText(t, least+add)
		if err == nil || c != nil || !strings.Contains(err.Error(), FileName+want) {
			t.Errorf("%s:\n got %v\nwant %s", add, err, want)
		}
	}
}

func TestLoadRefusesIdentity(t *testing.T) {
	for change, want := range map[[2]string]string{
		{`name = "gw"`, ``}:                   ": name: missing",
		{`name = "gw"`, `name = "GW"`}:        ":2: name: a name may contain",
		{`address = "192.0.2.1"`, ``}:         ": address: missing",
		{"192.0.2.1", "192.0.2.1:0"}:          ":3: address: the port after",
		{`server_id = "` + serverID, `# "`}:   ": server_id: missing",
		{serverID, serverID[1:]}:              ":4: server_id: a server id is 32 hex digits, this has 31",
		{"version = 1", "version = 2\nx = 1"}: ":1: version: this program reads version 1",
	} {
		if c, err := loadText(t, strings.Replace(least, change[0], change[1], 1)); err == nil || c != nil ||
			!strings.Contains(err.Error(), FileName+want) {
			t.Errorf("%v: got %v, want %s", change, err, want)
		}
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that there is no file", err)
	}
}

func TestSeveralProblems(t *testing.T) {
	_, err := loadText(t, "version = 1\nname = \"GW\"\naddress = \"\"\nknock_ports = [0]\nwindow = "+
		"\"1\"\n[service.a]\nports = [\"x\"]\n[service.b]\nports = []\n")
	for _, want := range []string{":2: name", ":3: address", ": server_id: missing", ":4: knock_ports", ":5: window",
		":7: service.a.ports", ":9: service.b.ports"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want also %s", err, want)
		}
	}
}

func TestTooManyServices(t *testing.T) {
	text := least
	for i := range keys.MaxServices + 1 {
		text += "[service.s" + strings.Repeat("x", i%26) + string(rune('a'+i/26)) + "]\nports = ['tcp/22']\n"
	}
	if _, err := loadText(t, text); err == nil || !strings.Contains(err.Error(), "at most 128 services") {
		t.Errorf("got %v", err)
	}
}

func TestKnockAndGuardedPorts(t *testing.T) {
	for _, text := range []string{"knock_ports = [{ port = 53, shared = true }]\n[service.dns]\nports = ['udp/53']",
		"[service.x]\nports = ['tcp/62201']"} {
		if _, err := loadText(t, least+text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestCheckAllow: CheckAllow accepts what a client may be allowed, all or nothing.
func TestCheckAllow(t *testing.T) {
	c, err := loadText(t, least+"[service.web]\nports = ['tcp/8000-8050', 'tcp/8443']\n[service.more]\nports = "+
		"['tcp/8051-8100', 'udp/8443']\n")
	lab.Must(t, err)
	for entry, want := range map[string]string{
		"web": "", "tcp/8443": "", "udp/8443": "", "tcp/8000-8100": "", "tcp/8049-8052": "",
		"ssh": "no such service", "tcp/8101": "guards tcp/8101", "udp/8000": "guards udp/8000",
		"tcp/7999-8050": "guards tcp/7999",
		"tcp/8050-8443": "guards tcp/8101", "tcp/1-65535": "guards tcp/1", "SSH": "a name may contain", "tcp/0": "a port is",
		"": "a name has",
	} {
		if err := c.CheckAllow(entry); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", entry, err, want)
		}
	}
}
