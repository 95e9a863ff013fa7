package bastion

import (
	"fmt"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestTakenOver: the user spa owns the state directory, and puts there what root must not follow, wait for, write or
// give away. No command of root does, and the guard is loaded in any case.
func TestTakenOver(t *testing.T) {
	c := guarded(t)
	c.off(`spa-server move-state /var/lib/spa; echo secret > /root/secret; chmod 600 /root/secret
mkdir /root/dir; cp -a /etc/spa /srv/spa`)
	c.up()
	c.run("systemctl stop spa-server.service; spa-server teardown")
	secret := "stat -c '%U:%G %a %s %h %n' /root/secret; cat /root/secret; ls -la --time-style=+ /root/dir"
	before := c.run(secret)
	names := "lock grants keeper journal audit.jsonl settings control.sock run moving journal.new grants.new " +
		"journal.damaged"
	for _, plant := range []string{
		"ln -s /root/secret $name", "mkfifo $name", "mkdir $name", "truncate -s 1T $name",
	} {
		c.run("find /var/lib/spa -mindepth 1 -delete; cp -a /srv/spa/. /etc/spa")
		c.run(fmt.Sprintf("cd /var/lib/spa; for name in %s; do setpriv --reuid spa --regid spa --clear-groups "+
			"env name=$name sh -c '%s' 2>/dev/null || true; done", names, plant))
		for _, command := range []string{"prepare", "guard", "remember", "check", "status", "revoke alice", "reload",
			"move-state /srv/moved"} {
			out, err := c.try("timeout -k 1 60 spa-server " + command)
			if err != nil && strings.Contains(err.Error(), "124") {
				t.Errorf("%s: %s waits for ever\n%s", plant, command, out)
			}
			if now := c.run(secret); now != before {
				t.Fatalf("%s: after %s there is\n%s\nand was\n%s\n%s", plant, command, now, before, out)
			}
		}
		c.run("rm -rf /srv/moved; cp -a /srv/spa/. /etc/spa")
		out, err := c.try("systemctl restart spa-guard.service")
		if err != nil {
			t.Errorf("%s: the guard: %v\n%s%s", plant, err, out, c.run("journalctl -b --no-pager -n 20 -u spa-guard"))
		}
		c.dark()
		c.run("spa-server teardown")
		c.run("systemctl reset-failed; systemctl stop spa-guard.service")
		if conn, err := lab.Dial(c.client, stranger, "192.0.2.1:22", lab.Patience); err != nil {
			t.Errorf("%s: teardown left the guard: %v", plant, err)
		} else {
			conn.Close()
		}
		if now := c.run(secret); now != before {
			t.Fatalf("%s: after a start of the guard there is\n%s\nand was\n%s", plant, now, before)
		}
	}
}

// TestForgedSettings: the user spa cannot leave settings that the next boot falls back to.
func TestForgedSettings(t *testing.T) {
	c := guarded(t)
	c.off("spa-server move-state /var/lib/spa")
	c.up()
	c.run("systemctl stop spa-server.service; mv /etc/spa/server.toml /etc/spa/settings /root; spa-server teardown")
	c.run("cp /root/settings /var/lib/spa/settings; chown spa:spa /var/lib/spa/settings; chmod 600 /var/lib/spa/settings")
	for _, unit := range []string{"spa-guard.service", "spa-server.service"} {
		if out, err := c.try("systemctl restart " + unit); err == nil {
			t.Errorf("%s trusts settings that the user spa could write: %s", unit, out)
		}
		if log := c.run("journalctl -b --no-pager -o cat -n 30 -u " + unit); !strings.Contains(log, "server.toml") {
			t.Errorf("%s does not say what is wrong:\n%s", unit, log)
		}
		c.run("systemctl stop spa-server.service; systemctl reset-failed")
	}
	c.run("chown root:spa /var/lib/spa/settings; chmod 640 /var/lib/spa/settings; systemctl restart spa-guard.service")
	c.dark()
}
