package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/firewall"
	"sallyport/spa/check"
	"sallyport/spa/lab"
)

// checked is a gateway set up by the runbook: the host drops what it does not allow, the server runs as the system
// user, and its guard is loaded at boot and survives flushes.
type checked struct {
	*gateway
	units string // /etc/systemd/system as the programs see it
}

const hostFirewall = `table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		iif lo accept
		ct state established,related accept
		tcp dport 22 accept
	}
}
`

func newChecked(t *testing.T) *checked {
	t.Helper()
	lab.NeedRoot(t)
	g := &gateway{t: t, dir: filepath.Join(t.TempDir(), "etc"), home: filepath.Join(t.TempDir(), "home")}
	g.client, g.host = lab.Pair(t)
	g.withSystemUser()
	g.must("spa-server", "init", "--config", g.dir, "--address", "192.0.2.1", "--service", "ssh=tcp/22")
	g.must("spa-keygen", "new", "alice", "--allow", "ssh", "--require-source", "--config", g.dir)
	c := &checked{gateway: g, units: t.TempDir()}
	wants := filepath.Join(c.units, "multi-user.target.wants")
	enabled := func(unit string) error { return os.WriteFile(filepath.Join(wants, unit), nil, 0o644) }
	lab.Must(t, errors.Join(os.Mkdir(wants, 0o755), enabled("spa-guard.service"), enabled("spa-server.service"),
		enabled("nftables.service")))
	c.nft(hostFirewall)
	g.serve(":22")
	g.start()
	return c
}

// nft adds rules to the loaded ones.
func (c *checked) nft(rules string) {
	c.t.Helper()
	cmd := exec.Command(lab.NeedProgram(c.t, "nft", "apt-get install nftables"), "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	var said bytes.Buffer
	cmd.Stderr = &said
	lab.Must(c.t, c.host.Start(cmd))
	if err := cmd.Wait(); err != nil {
		c.t.Fatalf("nft: %v\n%s", err, said.String())
	}
}

// check runs the program and returns its findings, without those about the machine of the test.
func (c *checked) check(as uint32) (found []check.Finding, code int) {
	c.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "spa-server"), "check", "--json", "--config", c.dir)
	if as == 0 {
		cmd = lab.See(cmd, map[string]string{
			"/etc/passwd": filepath.Join(c.accounts, "passwd"), "/etc/group": filepath.Join(c.accounts, "group"),
			"/etc/systemd/system": c.units,
		})
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: as, Gid: as}}
	}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	lab.Must(c.t, c.host.Start(cmd))
	cmd.Wait()
	for d := json.NewDecoder(&out); d.More(); {
		var f check.Finding
		if err := d.Decode(&f); err != nil {
			c.t.Fatalf("reading what check prints: %v\n%s", err, said.String())
		}
		found = append(found, f)
	}
	return slices.DeleteFunc(found, c.ofMachine), cmd.ProcessState.ExitCode()
}

// ofMachine reports whether a finding is about the machine that the test runs on, and correct.
func (c *checked) ofMachine(f check.Finding) bool {
	switch f.Subject {
	case "clock":
		var t unix.Timex
		state, err := unix.Adjtimex(&t)
		return err == nil && (state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0)
	case "nftables.service", "firewall.persist":
		persists := false
		err := c.host.Do(func() error {
			persists = firewall.CanPersist()
			return nil
		})
		return err == nil && !persists // an older kernel: check is right
	case "state":
		var s unix.Statfs_t
		return unix.Statfs(c.dir, &s) == nil && s.Type == unix.TMPFS_MAGIC
	}
	return false
}

// TestCheckHost: on a clean host there are no findings, and check reports what another tool, an administrator and a
// killed server change.
func TestCheckHost(t *testing.T) {
	c := newChecked(t)
	if found, code := c.check(0); len(found) != 0 || code != 0 {
		t.Fatalf("a clean host: exit %d and %+v\n%s", code, found, c.server.log())
	}
	want := func(when string, code int, severity check.Severity, words ...string) {
		t.Helper()
		found, got := c.check(0)
		if severity == "" {
			if got != code || len(found) != 0 {
				t.Errorf("on a clean host: exit %d and %+v", got, found)
			}
			return
		}
		if got != code || len(found) != 1 || found[0].Severity != severity {
			t.Errorf("%s: exit %d and %+v", when, got, found)
			return
		}
		for _, word := range words {
			if text := found[0].Subject + " " + found[0].Text + " " + found[0].Advice; !strings.Contains(text, word) {
				t.Errorf("%s: got %q, want it to say %q", when, text, word)
			}
		}
	}
	c.nft("table ip other { chain c { type filter hook input priority 10; tcp dport 22 drop; }\n}")
	want("another table drops", 1, check.Problem, "table ip other, chain c", "tcp/22",
		"nft insert rule ip other c tcp dport 22 accept")
	c.nft("insert rule ip other c tcp dport 22 accept")
	want2, code := c.check(0)
	if len(want2) != 0 || code != 0 {
		t.Errorf("after what it advised: exit %d and %+v", code, want2)
	}
	lab.Must(t, os.Chmod(filepath.Join(c.dir, "journal"), 0o644))
	want("a readable journal", 0, check.Warning, "journal", "chmod o-rwx")
	lab.Must(t, os.Chmod(filepath.Join(c.dir, "journal"), 0o600))
	settings := lab.Value(os.ReadFile(filepath.Join(c.dir, "server.toml")))(t)
	write := func(text string) {
		t.Helper()
		lab.Must(t, os.WriteFile(filepath.Join(c.dir, "server.toml"), []byte(text), 0o640))
	}
	write(strings.Replace(string(settings), `for = "30s"`, `for = "40s"`, 1))
	want("changed settings", 0, check.Warning, "server.toml", "has changed", "spa-server reload")
	c.fails(0, "reload", "--config", c.dir)
	want("", 0, "")
	c.must("spa-keygen", "rotate-gate", "--config", c.dir)
	want("a new gate key", 0, check.Warning, "gate.key", "has changed", "spa-server reload")
	c.fails(0, "reload", "--config", c.dir)
	want("", 0, "")
	c.nft("delete chain ip other c")
	c.server.stop(syscall.SIGKILL)
	want("a killed server", 1, check.Problem, "spa-server", "no client can knock")
	c.fails(0, "teardown", "--config", c.dir)
	want("neither server nor guard", 1, check.Problem, "guard", "NOT LOADED")
	write("surprise = 1\n" + string(settings))
	if found, code := c.check(0); code != 1 || len(found) != 3 || !strings.Contains(found[0].Text, "surprise") ||
		found[0].Severity != check.Problem || !strings.Contains(found[2].Text, "NOT LOADED") {
		t.Errorf("with a mistake: exit %d and %+v", code, found)
	}
}

// TestCheckWithoutRoot: it reports what it may not inspect.
func TestCheckWithoutRoot(t *testing.T) {
	c := newChecked(t)
	for dir := filepath.Dir(c.dir); dir != os.TempDir() && len(dir) > 1; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	for path, mode := range map[string]os.FileMode{bin: 0o755, c.dir: 0o755, filepath.Join(c.dir, "server.toml"): 0o644} {
		lab.Must(t, os.Chmod(path, mode))
	}
	found, _ := c.check(spaID + 1)
	var unseen []string
	for _, f := range found {
		if f.Subject == "not inspected" {
			unseen = append(unseen, f.Text)
		}
	}
	for _, what := range []string{"rule sets", "which program"} {
		if !slices.ContainsFunc(unseen, func(text string) bool {
			return strings.Contains(text, what) && strings.Contains(text, "that needs root")
		}) {
			t.Errorf("got %q, want it to say that it could not inspect the %s", unseen, what)
		}
	}
}

// TestCheckFrom: if a ban blocks a client with a grant, check --from reports it and how to lift it, but nothing about
// another client.
func TestCheckFrom(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	g.nft(g.host, `table inet f2b-table {
		set addr-set-sshd { type ipv4_addr; elements = { 192.0.2.2 }; }
		chain f2b-chain { type filter hook input priority filter - 1; tcp dport { 22 } ip saddr @addr-set-sshd reject; }
	}`)
	g.mustOpen("--for", "10m")
	g.wantDark("192.0.2.2", "192.0.2.1:22", "granted and banned")
	check := func(from string) string {
		t.Helper()
		out, _ := g.run(g.host, "spa-server", "check", "--from", from, "--config", g.dir)
		return out
	}
	if out := check("192.0.2.2"); !strings.Contains(out, "drops new connections to tcp/22 from 192.0.2.2") ||
		!strings.Contains(out, "fail2ban-client unban 192.0.2.2") {
		t.Errorf("of who is banned check says:\n%s", out)
	}
	if out := check("192.0.2.3"); strings.Contains(out, "f2b") {
		t.Errorf("of another check says:\n%s", out)
	}
	g.nft(g.host, "delete element inet f2b-table addr-set-sshd { 192.0.2.2 }") // as unban does
	if out := check("192.0.2.2"); strings.Contains(out, "f2b") {
		t.Errorf("after the ban check says:\n%s", out)
	}
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "granted and no longer banned")
	if out, code := g.run(g.host, "spa-server", "check", "--from", "bob", "--config", g.dir); code != 2 {
		t.Errorf("no address: exit %d\n%s", code, out)
	}
}
