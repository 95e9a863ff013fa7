package check

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/replay"
	"sallyport/spa/server/setup"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// initialised returns the configuration of a new gateway with one client, whose files exist.
func initialised(t *testing.T, change func(*config.Config), client keys.Client) *config.Config {
	t.Helper()
	c := config.Default(filepath.Join(t.TempDir(), "etc"))
	c.Name, c.Address, c.ServerID = "gw", "192.0.2.1", keys.NewServerID()
	ssh := lab.Value(service.ParsePorts("tcp/22"))(t)
	c.Services = []config.Service{config.NewService("ssh", ssh)}
	if change != nil {
		change(&c)
	}
	lab.Must(t, setup.Init(c, now))
	client.Name, client.ID, client.Key = "alice", keys.NewID(), keys.NewKey()
	if client.Allow == nil {
		client.Allow = []string{"ssh"}
	}
	lab.Must(t, keys.WriteClient(filepath.Join(c.Dir, config.ClientsDir), &client, true))
	return &c
}

func TestCheck(t *testing.T) {
	strict := keys.Client{RequireSource: true}
	tests := []struct {
		name   string
		config func(*config.Config)
		client keys.Client
		spoil  func(t *testing.T, dir string)
		want   Severity // empty: nothing is found
		says   []string
	}{
		{name: "nothing", client: strict},
		{name: "source not required", want: Warning, says: []string{"require_source", "alice"}},
		{name: "long window", config: func(c *config.Config) { c.Window = 5 * time.Minute }, client: strict, want: Warning,
			says: []string{"window", "5m"}},
		{name: "a copy of another gateway", client: strict, spoil: func(t *testing.T, dir string) {
			path := filepath.Join(dir, config.JournalFile)
			lab.Must(t, errors.Join(os.Remove(path), replay.Create(path, replay.Config{Window: time.Minute, MachineID: "other"},
				now)))
		}, want: Warning, says: []string{"journal", "came from another machine", "opens the other", "stop one of the two"}},
		{name: "handed packets", config: func(c *config.Config) { c.Firewall.TPROXY = true }, client: strict, want: Warning,
			says: []string{"firewall.tproxy", "bypass the guard"}},
		{name: "trusted interface", config: func(c *config.Config) { c.Firewall.TrustedInterfaces = []string{"lan0"} },
			client: strict, want: Warning, says: []string{"trusted_interfaces", "lan0"}},
		{name: "dry run", config: func(c *config.Config) { c.Firewall.Backend = "dry-run" }, client: strict, want: Warning,
			says: []string{"dry-run"}},
		{name: "no service", config: func(c *config.Config) { c.Services = nil }, client: keys.Client{RequireSource: true,
			Allow: []string{"ssh"}}, want: Problem, says: []string{"allow", "ssh"}},
		{name: "expired", client: keys.Client{RequireSource: true, Expires: now}, want: Notice,
			says: []string{"alice", "expired"}},
		{name: "unknown service", client: keys.Client{RequireSource: true, Allow: []string{"imap"}}, want: Problem,
			says: []string{"alice", "imap"}},
		{name: "no client", client: strict, spoil: remove("clients/alice.toml"), want: Notice,
			says: []string{"there are no clients yet"}},
		{name: "no journal", client: strict, spoil: remove("journal"), want: Notice, says: []string{"journal"}},
		{name: "no gate key", client: strict, spoil: remove("gate.key"), want: Problem, says: []string{"gate.key"}},
		{name: "no configuration", client: strict, spoil: remove("server.toml"), want: Problem,
			says: []string{"server.toml"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := initialised(t, test.config, test.client)
			if test.spoil != nil {
				test.spoil(t, c.Dir)
			}
			found := examine(t.Context(), c.Dir, now, quietHost())
			pasteable(t, found)
			if test.want == "" {
				if len(found) != 0 {
					t.Errorf("got %v, want nothing", found)
				}
				return
			}
			if !says(found, test.want, test.says) {
				t.Errorf("got %+v, want a %q that says %q", found, test.want, test.says)
			}
		})
	}
}

func remove(file string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		lab.Must(t, os.Remove(filepath.Join(dir, file)))
	}
}

// pasteable checks that the advice of each finding can be pasted.
func pasteable(t *testing.T, found []Finding) {
	t.Helper()
	for _, f := range found {
		lab.Pasteable(t, f.Subject+": "+f.Text, f.Advice)
	}
}

// says reports whether one of the findings has this severity and all the words.
func says(found []Finding, severity Severity, words []string) bool {
	for _, f := range found {
		all := f.Severity == severity
		for _, word := range words {
			all = all && strings.Contains(f.Subject+" "+f.Text+" "+f.Advice, word)
		}
		if all {
			return true
		}
	}
	return false
}
