package bastion

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// guarded is a computer with a gateway as the runbook makes it, an sshd, and Alice's key in /root/alice.token. It is off.
func guarded(t *testing.T) *computer {
	t.Helper()
	c := newComputer(t)
	c.chroot(`ssh-keygen -A >/dev/null
systemctl enable ssh.service
spa-server init --address 192.0.2.1 --service ssh=tcp/22
sed -i 's/window = "30s"/window = "5s"/' /etc/spa/server.toml
spa-keygen new alice --allow ssh --out /root/alice.token
systemctl enable spa-guard.service spa-server.service`)
	return c
}

// TestBootWithNetwork: the network is there before systemd is, as in a container, and a stranger tries all the time.
func TestBootWithNetwork(t *testing.T) {
	c := guarded(t)
	c.plug()
	attempts := lab.Attempt(t, c.client, stranger, "192.0.2.1:22")
	c.up()
	outcome, err := attempts.Stop()
	must(t, err)
	if outcome.Through > 0 {
		t.Errorf("at boot a stranger reached sshd: %v", outcome)
	}
	c.knock()
}

// knock lets Alice in at her desk, and nobody else.
func (c *computer) knock() {
	c.t.Helper()
	config := filepath.Join(c.t.TempDir(), "spa")
	client := c.path("/usr/local/bin/spa-client")
	for _, args := range [][]string{
		{"import", c.path("/root/alice.token"), "--config", config},
		{"open", "ssh", "--host", "gw", "--config", config},
	} {
		var out bytes.Buffer
		cmd := exec.Command(client, args...)
		cmd.Stdout, cmd.Stderr = &out, &out
		must(c.t, c.client.Start(cmd))
		if err := cmd.Wait(); err != nil {
			c.t.Fatalf("spa-client %v: %v\n%s\n%s", args, err, out.String(), c.run("journalctl -b --no-pager -u spa-server -u spa-guard"))
		}
	}
	conn, err := lab.Dial(c.client, alice, "192.0.2.1:22", lab.Patience)
	must(c.t, err)
	conn.Close()
	c.dark()
}

func (c *computer) dark() {
	c.t.Helper()
	if conn, err := lab.Dial(c.client, stranger, "192.0.2.1:22", 400*time.Millisecond); err == nil {
		conn.Close()
		c.t.Error("a stranger reaches sshd")
	}
}
