package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestSSHConfigCommand: ssh expands percent signs in the ProxyCommand, and then a shell parses it.
func TestSSHConfigCommand(t *testing.T) {
	for name, c := range map[string]struct {
		config sshConfig
		want   string
	}{
		"plain":  {sshConfig{program: "spa-client"}, "spa-client connect ssh --host gw"},
		"a path": {sshConfig{program: "/opt/a b/spa-client"}, "'/opt/a b/spa-client' connect ssh --host gw"},
		"a quote": {sshConfig{program: "spa-client", config: "/home/o'neill"},
			`spa-client --config '/home/o'\''neill' connect ssh --host gw`},
		"a per cent": {sshConfig{program: "spa-client", config: "/a%h"}, "spa-client --config /a%%h connect ssh --host gw"},
		"a dollar": {sshConfig{program: "spa-client", config: "/$(id)"},
			"spa-client --config '/$(id)' connect ssh --host gw"},
		"Windows": {sshConfig{program: `C:\Program Files\spa-client.exe`, windows: true},
			`"C:\Program Files\spa-client.exe" connect ssh --host gw`},
		"a fleet": {sshConfig{program: "spa-client", each: true, config: "/a%h"},
			"spa-client --config /a%%h connect ssh --host 'gw/%n'"},
		"a fleet, Windows": {sshConfig{program: "spa-client", each: true, windows: true},
			`spa-client connect ssh --host "gw/%n"`},
		"another port": {sshConfig{program: "spa-client", asked: 2222}, "spa-client connect ssh --host gw --port 2222"},
	} {
		c.config.name, c.config.service = "gw", "ssh"
		if got := c.config.command(); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestSSHConfigOfIPv6(t *testing.T) {
	var out bytes.Buffer
	c := sshConfig{names: "gw", name: "gw", host: "2001:db8::1", service: "ssh", port: 2222, program: "spa-client"}
	lab.Must(t, c.print(&out))
	want := "\nHost gw\n\tHostName 2001:db8::1\n\tPort 2222\n\tHostKeyAlias [2001:db8::1]:2222\n\tProxyCommand " +
		"spa-client connect ssh --host gw\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}

// TestSSHConfigRefusesLineBreaks: a line break would add a line to the configuration.
func TestSSHConfigRefusesLineBreaks(t *testing.T) {
	if err := onOneLine("/home/a\n\tProxyCommand evil"); err == nil {
		t.Error("no error")
	}
	if err := onOneLine("/home/a", "/b"); err != nil {
		t.Error(err)
	}
}

// TestProgram: the name alone is used only if it finds this program.
func TestProgram(t *testing.T) {
	self := lab.Value(os.Executable())(t)
	name := strings.TrimSuffix(filepath.Base(self), ".exe")
	t.Setenv("PATH", filepath.Dir(self))
	if got, err := program(); err != nil || got != name {
		t.Errorf("in PATH: got %q, %v; want %q", got, err, name)
	}
	other := t.TempDir()
	lab.Must(t, os.WriteFile(filepath.Join(other, filepath.Base(self)), nil, 0o755))
	t.Setenv("PATH", other)
	if got, err := program(); err != nil || got != self {
		t.Errorf("another one of that name in PATH: got %q, %v; want %q", got, err, self)
	}
}
