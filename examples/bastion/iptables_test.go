package bastion

import (
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestUnitsWithIptables: the units work with both kinds of iptables, as they do with nftables.
func TestUnitsWithIptables(t *testing.T) {
	lab.NeedProgram(t, "xtables-legacy-multi", "apt-get install iptables")
	lab.NeedProgram(t, "ipset", "apt-get install ipset")
	for _, kind := range []string{"nf_tables", "legacy"} {
		t.Run(kind, func(t *testing.T) {
			c := guarded(t)
			c.off("sed -i 's/^backend = .*/backend = \"iptables\"/' /etc/spa/server.toml; spa-server move-state /var/lib/spa\n" +
				"for name in iptables ip6tables; do update-alternatives --set $name /usr/sbin/$name-" +
				map[string]string{"nf_tables": "nft", "legacy": "legacy"}[kind] + "; done")
			c.worksWith(kind)
		})
	}
}

// worksWith checks start, knock, restart, reload, kill and reboot.
func (c *computer) worksWith(kind string) {
	c.t.Helper()
	c.plug()
	attempts := lab.Attempt(c.t, c.client, stranger, "192.0.2.1:22")
	c.up()
	c.guardedBy(kind)
	c.knock()
	session := lab.Value(lab.Dial(c.client, alice, "192.0.2.1:22", lab.Patience))(c.t)
	defer session.Close()
	granted := c.granted()
	if !strings.Contains(granted, `"alice"`) {
		c.t.Errorf("the grants are %s", granted)
	}
	for _, line := range []string{
		"systemctl restart spa-server.service",
		"systemctl restart spa-guard.service",
		"systemctl reload spa-server.service",
		"systemctl kill -s KILL spa-server.service; systemctl reset-failed spa-server.service; " +
			"systemctl restart spa-server.service",
		"systemctl stop spa-server.service; systemctl restart spa-guard.service; systemctl start spa-server.service",
	} {
		if out, err := c.try(line); err != nil {
			c.t.Fatalf("%s: %v\n%s%s", line, err, out, c.said())
		}
		if after := c.granted(); after != granted {
			c.t.Errorf("after %s the grants are\n%s\nand were\n%s", line, after, granted)
		}
		c.guardedBy(kind)
		conn, err := lab.Dial(c.client, alice, "192.0.2.1:22", lab.Patience)
		if err != nil {
			c.t.Fatalf("after %s, through the grant: %v\n%s", line, err, c.said())
		}
		conn.Close()
		c.dark()
	}
	lab.Must(c.t, session.SetDeadline(time.Now().Add(lab.Patience)))
	if _, err := session.Read(make([]byte, 64)); err != nil { // sshd's banner
		c.t.Errorf("the session ended: %v", err)
	}
	c.closes(attempts, "before the reboot")
	c.halt()
	c.off("echo mistake >> /etc/spa/server.toml")
	c.plug()
	attempts = lab.Attempt(c.t, c.client, stranger, "192.0.2.1:22")
	c.up()
	c.guardedBy(kind)
	c.knock()
	c.closes(attempts, "after a reboot with a mistake")
	if kind == "legacy" {
		c.lockHeld()
	}
}

// lockHeld: a process of the user spa holds the lock of iptables. An administrator learns how to tear down.
func (c *computer) lockHeld() {
	c.t.Helper()
	c.run("systemctl stop spa-server.service; systemd-run --quiet --unit=holds --property=User=spa " +
		"flock --no-fork --shared /run/xtables.lock sleep infinity")
	lab.Eventually(c.t, "the lock to be held", func() bool {
		_, err := c.try("! flock --nonblock /run/xtables.lock true")
		return err == nil
	})
	if out, err := c.try("spa-server teardown"); err == nil || !strings.Contains(out, "fuser -v /run/xtables.lock") {
		c.t.Errorf("teardown: %v\n%s", err, out)
	}
	c.dark()
	c.run("systemctl stop holds; spa-server teardown")
}

// guardedBy checks that the server runs, with a guard of that kind of iptables.
func (c *computer) guardedBy(kind string) {
	c.t.Helper()
	c.run("systemctl is-active spa-guard.service spa-server.service || " +
		"{ systemctl status --no-pager -n 30 spa-guard spa-server; exit 1; }")
	if status := c.run("spa-server status"); !strings.Contains(status, "("+kind+")") {
		c.t.Errorf("want a guard of iptables (%s):\n%s", kind, status)
	}
}

func (c *computer) closes(attempts *lab.Attempts, when string) {
	c.t.Helper()
	if outcome := lab.Value(attempts.Stop())(c.t); outcome.Through > 0 {
		c.t.Errorf("%s a stranger reached sshd: %v\n%s", when, outcome, c.said())
	}
}

// said returns what the units said since the boot.
func (c *computer) said() string {
	c.t.Helper()
	return c.run("journalctl -b --no-pager -u spa-server -u spa-guard -u spa-guard-root")
}
