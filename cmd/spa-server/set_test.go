package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/lab"
)

// settable makes a gateway's files, and returns a function that runs a program on them.
func settable(t *testing.T) (dir string, run func(program string, args ...string) (string, int)) {
	t.Helper()
	g := &gateway{t: t, dir: filepath.Join(t.TempDir(), "etc")}
	g.must("spa-server", "init", "--config", g.dir, "--address", "192.0.2.1", "--service", "ssh=tcp/22",
		"--service", "web=tcp/80,tcp/443")
	return g.dir, func(program string, args ...string) (string, int) {
		cmd := g.command(program, slices.Insert(args, 1, "--config", g.dir)...)
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
}

// TestSet: set reports whether anything changed, and what a running server needs, and refuses what would leave a client
// without what it may open.
func TestSet(t *testing.T) {
	t.Parallel()
	dir, run := settable(t)
	run("spa-keygen", "new", "alice", "--allow", "ssh,web")
	run("spa-keygen", "new", "bob", "--allow", "tcp/443")
	for _, c := range []struct {
		args string // separated by semicolons
		code int
		want string
	}{
		{"window=20s", cli.Done, "server.toml: changed: window\nspa-server: note: a running server takes it with: " +
			"spa-server reload --config " + dir + "\n"},
		{"window=20s", cli.Done, "server.toml: unchanged\n"},
		{"window=20s;--json", cli.Done, `{"changed":false,"keys":[],"apply":""}` + "\n"},
		{"state=x;window=;--json;--dry-run", cli.Done, `{"changed":true,"keys":["state","window"],"apply":"restart"}` + "\n"},
		{"state=x;--dry-run", cli.Done, "server.toml: would be changed: state\n"},
		{"firewall.mark=0x20000000", cli.Done, "server.toml: changed: firewall.mark\nspa-server: note: a running server " +
			"needs a restart for firewall.mark: systemctl restart spa-server (grants and sessions continue)\n"},
		{"service.db.ports=tcp/5432;service.db.for=1m;--json", cli.Done,
			`{"changed":true,"keys":["service.db.ports","service.db.for"],"apply":"reload"}` + "\n"},
		{"service.db=", cli.Done, "server.toml: changed: service.db\n"},
		{"service.web=", cli.Failed, "spa-server: error: alice may open web, which would be gone\nspa-server: error: bob " +
			"may open tcp/443, which would be gone\nspa-server: hint: nothing was changed; first give it another list, such " +
			"as: spa-keygen set alice 'allow=ssh'\n"},
		{"service.web.ports=tcp/80", cli.Failed, "error: bob may open tcp/443, which would be gone\nspa-server: hint: " +
			"nothing was changed; first give it another list, such as: spa-keygen set bob 'allow=[]'\n"},
		{"receipts=no;window=1m", cli.Failed, "error: receipts: should be true or false\nspa-server: hint: nothing was "},
		{"window=1h", cli.Failed, "server.toml:10: window: must be at most 10m"},
		{"server_id=00", cli.Misused, "error: set does not change server_id\nspa-server: hint: clients have it in their"},
		{"version=2", cli.Misused, "error: set does not change version\n"},
		{"", cli.Misused, "hint: spa-server set --help"},
	} {
		before := lab.Value(os.ReadFile(filepath.Join(dir, "server.toml")))(t)
		out, code := run("spa-server", append([]string{"set"}, strings.FieldsFunc(c.args, func(r rune) bool {
			return r == ';'
		})...)...)
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit %d, want %d\n%s\nwant %s", c.args, code, c.code, out, c.want)
		}
		after := lab.Value(os.ReadFile(filepath.Join(dir, "server.toml")))(t)
		changes := strings.Contains(c.want, "changed") && !strings.Contains(c.want, "unchanged") && c.code == cli.Done &&
			!strings.Contains(c.want, `"changed":false`) && !strings.Contains(c.args, "--dry-run")
		if changes == (string(after) == string(before)) {
			t.Errorf("%s: the file was changed: %v", c.args, !changes)
		}
	}
}

// TestSetRecordsWhereItWas: a setting that names another audit log, or state directory, does not make set write there:
// the file may be one that the name was mistaken for.
func TestSetRecordsWhereItWas(t *testing.T) {
	t.Parallel()
	victim := filepath.Join(t.TempDir(), "precious")
	lab.Must(t, os.WriteFile(victim, []byte("precious\n"), 0o600))
	for key, value := range map[string]string{"audit.file": victim, "state": t.TempDir()} {
		dir, run := settable(t)
		if out, code := run("spa-server", "set", key+"="+value); code != cli.Done || strings.Contains(out, "warning") {
			t.Errorf("%s: exit %d\n%s", key, code, out)
		}
		log := string(lab.Value(os.ReadFile(filepath.Join(dir, "audit.jsonl")))(t))
		if !strings.Contains(log, `"settings":["`+key+`"]`) {
			t.Errorf("%s: the log has %s", key, log)
		}
	}
	if text := string(lab.Value(os.ReadFile(victim))(t)); text != "precious\n" {
		t.Errorf("the other file is now %q", text)
	}
}

// TestSetElsewhere: where there are no files, set says how to make them.
func TestSetElsewhere(t *testing.T) {
	t.Parallel()
	g := &gateway{t: t, dir: filepath.Join(t.TempDir(), "etc")}
	out, err := g.command("spa-server", "set", "window=20s", "--config", g.dir).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "hint: spa-server init makes a gateway's files") {
		t.Errorf("got %v, %s", err, out)
	}
}

// TestCompleteSet: set completes the keys, those of the services that there are, and no values.
func TestCompleteSet(t *testing.T) {
	t.Parallel()
	_, run := settable(t)
	out, _ := run("spa-server", "__complete", "set", "")
	for want, is := range map[string]bool{"window=": true, "service.ssh.for=": true, "service.web.ports=": true,
		"firewall.admit.set4=": true, "server_id=": false, "version=": false, "service.NAME.for=": false} {
		if strings.Contains(out, want+"\n") != is {
			t.Errorf("%s: not %v in\n%s", want, is, out)
		}
	}
	if out, _ := run("spa-server", "__complete", "set", "window="); !strings.HasPrefix(out, ":6\n") {
		t.Errorf("a value: got %s", out)
	}
}

// TestSetAndReload: what set writes a running server takes by a reload, and the audit log has a line of it.
func TestSetAndReload(t *testing.T) {
	g := newGateway(t)
	g.start()
	var change settingsChange
	out := g.must("spa-server", "set", "window=20s", "service.db.ports=tcp/5432", "--json", "--config", g.dir)
	lab.Must(t, json.Unmarshal([]byte(out), &change))
	if !change.Changed || change.Apply != "reload" {
		t.Errorf("got %+v", change)
	}
	if out := g.must("spa-server", "reload", "--config", g.dir); out != "settings changed: window, service.db (new)\n" {
		t.Errorf("reload: %s", out)
	}
	g.must("spa-keygen", "set", "alice", "allow=ssh,tcp/5432", "--config", g.dir)
	lab.Eventually(t, "alice to open the port of db", func() bool {
		_, code := g.run(g.client, "spa-client", "open", "tcp/5432", "--host", "gw", "--config", g.home)
		return code == cli.Done
	})
	var settings []any
	for _, line := range g.auditLines() {
		if line["act"] == "set" {
			settings = append(settings, line["settings"].([]any)...)
		}
	}
	if len(settings) != 3 || settings[0] != "window" || settings[1] != "service.db.ports" || settings[2] != "allow" {
		t.Errorf("the audit log has %v", settings)
	}
}
