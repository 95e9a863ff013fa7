package bastion

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// asBefore starts a server as earlier units did: as root, which drops its privileges itself.
func (c *computer) asBefore() {
	c.t.Helper()
	c.run("systemd-run --quiet --unit=before --service-type=notify --property=KillMode=process " +
		"/usr/local/bin/spa-server run --last-good")
}

// layouts are how gateways of earlier versions may look, and the commands that make them.
var layouts = []struct{ name, line string }{
	{"as init makes it", "true"},
	{"a directory for root alone", "chown -R root:root /etc/spa; chmod -R go= /etc/spa; chgrp -R spa /etc/spa/clients; " +
		"chmod 750 /etc/spa/clients; chmod 640 /etc/spa/clients/*"},
	{"all the server's", "chown -R spa:spa /etc/spa"},
	{"state elsewhere, root's", "install -d -m 750 -g spa /srv/state; rm /etc/spa/journal; " + stateIn("/srv/state") +
		writes("/srv/state")},
	{"state elsewhere, for root alone", "install -d -m 700 /srv/state; rm /etc/spa/journal; " + stateIn("/srv/state") +
		writes("/srv/state")},
	{"state in /var/lib/spa", "install -d -m 750 -g spa /var/lib/spa; rm /etc/spa/journal; " + stateIn("/var/lib/spa")},
	{"audit log elsewhere", "install -d -m 755 /var/log/spa" + writes("/var/log/spa") +
		"; sed -i 's|^file = .*|file = \"/var/log/spa/audit.jsonl\"|' /etc/spa/server.toml; " +
		"grep /var/log /etc/spa/server.toml"},
}

// TestLayouts: a gateway that a server of root used, however its files lie, goes on with the units. No grant ends, no
// packet works twice, the guard is never missing, and the sandbox is whole.
func TestLayouts(t *testing.T) {
	c := guarded(t)
	c.off("systemctl disable spa-guard.service spa-server.service; cp -a /etc/spa /srv/spa")
	for _, layout := range layouts {
		c.off("rm -rf /etc/systemd/system/spa-*.service.d /etc/spa /srv/state /var/lib/spa /var/log/spa; " +
			"cp -a /srv/spa /etc/spa")
		c.off(layout.line)
		c.up()
		c.asBefore()
		c.knock()
		attempts := lab.Attempt(t, c.client, stranger, "192.0.2.1:22")
		session := lab.Value(lab.Dial(c.client, alice, "192.0.2.1:22", lab.Patience))(t)
		before := c.granted()
		if out, err := c.try("systemctl stop before; systemctl start spa-guard.service spa-server.service"); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", layout.name, err, out, c.run("ls -la /etc/spa; journalctl -b --no-pager -n 60"))
		}
		if after := c.granted(); !strings.Contains(before, `"alice"`) || after != before {
			t.Errorf("%s: the grants were\n%s\nand are\n%s\n%s", layout.name, before, after,
				c.run("journalctl -b --no-pager -u spa-server -u spa-guard"))
		}
		status := c.run("spa-server status")
		for _, part := range []string{"user spa", "CAP_NET_ADMIN", "spa-keeper, process "} {
			if !strings.Contains(status, part) {
				t.Errorf("%s: status has no %q:\n%s", layout.name, part, status)
			}
		}
		lab.Must(t, session.SetDeadline(time.Now().Add(lab.Patience)))
		if _, err := session.Read(make([]byte, 64)); err != nil { // sshd's banner
			t.Errorf("%s: the session ended: %v", layout.name, err)
		}
		session.Close()
		if outcome := lab.Value(attempts.Stop())(t); outcome.Through > 0 {
			t.Errorf("%s: a stranger reached sshd: %v", layout.name, outcome)
		}
		// A revocation refuses the client for as long as the window.
		c.run(`sed -i 's/window = "5s"/window = "5m"/' /etc/spa/server.toml; systemctl reload spa-server.service`)
		c.knock()
		c.run("spa-server revoke alice; systemctl kill -s KILL spa-server; systemctl reset-failed spa-server; " +
			"systemctl restart spa-server.service")
		if out := c.refused(); !strings.Contains(out, "closed or revoked") {
			t.Errorf("%s: after a revocation and a crash: %s", layout.name, out)
		}
		c.moves(layout.name)
		if out, err := c.try("spa-server check"); strings.Contains(out, "problem") {
			t.Errorf("%s: check: %v\n%s", layout.name, err, out)
		}
		if t.Failed() {
			t.Fatalf("%s\n%s", layout.name,
				c.run("ls -la /etc/spa; journalctl -b --no-pager -u spa-server -u spa-guard -u before"))
		}
		c.halt()
	}
}

// moves moves the state to where new gateways have it: a client that was revoked stays refused, and what is open stays.
func (c *computer) moves(layout string) {
	c.t.Helper()
	before := c.granted()
	out, err := c.try("systemctl stop spa-server.service; spa-server move-state /var/lib/spa; " +
		"systemctl start spa-server.service")
	if err != nil {
		c.t.Fatalf("%s: %v\n%s\n%s", layout, err, out, c.run("ls -la /etc/spa /var/lib/spa; journalctl -b --no-pager -n 30"))
	}
	if after := c.granted(); after != before {
		c.t.Errorf("%s: moved, the grants were\n%s\nand are\n%s", layout, before, after)
	}
	if out := c.refused(); !strings.Contains(out, "closed or revoked") {
		c.t.Errorf("%s: moved, after a revocation: %s", layout, out)
	}
	if left := c.run("stat -c '%n %U %a' /var/lib/spa /var/lib/spa/*; ls /etc/spa"); strings.Contains(left, "journal\n") ||
		!strings.Contains(left, "/var/lib/spa spa 700\n/var/lib/spa/audit.jsonl spa") && !strings.Contains(layout, "audit") {
		c.t.Errorf("%s: moved, and there are\n%s", layout, left)
	}
}

// granted returns the open grants, without the fractions of their ends.
func (c *computer) granted() string {
	c.t.Helper()
	return regexp.MustCompile(`[.][0-9]+Z`).ReplaceAllString(c.run("spa-server grants --json"), "Z")
}

// refused returns what Alice's client prints when it is refused.
func (c *computer) refused() string {
	c.t.Helper()
	config := filepath.Join(c.t.TempDir(), "spa")
	client := c.path("/usr/local/bin/spa-client")
	if out, code := lab.Run(c.t, c.client, exec.Command(client, "import", c.path("/root/alice.token"), "--config",
		config)); code != 0 {
		c.t.Fatalf("import: exit %d\n%s", code, out)
	}
	out, code := lab.Run(c.t, c.client, exec.Command(client, "open", "ssh", "--host", "gw", "--config", config))
	if code != 3 {
		c.t.Errorf("open: exit %d, want 3", code)
	}
	return string(out)
}

// stateIn returns the command that writes another state directory into server.toml.
func stateIn(dir string) string {
	return `sed -i 's|^# state = .*||; s|^state = .*||; s|^version = 1|version = 1\nstate = "` + filepath.Clean(dir) +
		`"|' /etc/spa/server.toml`
}

// writes returns the commands that let the units write to a directory.
func writes(dir string) string {
	return "; for unit in spa-guard spa-server; do mkdir -p /etc/systemd/system/$unit.service.d; " +
		"printf '[Service]\\nReadWritePaths=-" + dir + "\\n' > /etc/systemd/system/$unit.service.d/writes.conf; done"
}
