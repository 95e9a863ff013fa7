package bastion

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// guarded returns a computer with a gateway set up by the runbook, an sshd, and Alice's key in /root/alice.token. It is
// off.
func guarded(t *testing.T) *computer {
	t.Helper()
	c := newComputer(t)
	c.off(`ssh-keygen -A >/dev/null
systemctl enable ssh.service
spa-server init --address 192.0.2.1 --service ssh=tcp/22
sed -i 's/window = "30s"/window = "5s"/' /etc/spa/server.toml
spa-keygen new alice --allow ssh --out /root/alice.token
systemctl enable spa-guard.service spa-server.service`)
	return c
}

// TestBootWithNetwork: the network is up before systemd, as in a container, and a stranger tries continuously.
func TestBootWithNetwork(t *testing.T) {
	c := guarded(t)
	c.plug()
	attempts := lab.Attempt(t, c.client, stranger, "192.0.2.1:22")
	c.up()
	outcome := lab.Value(attempts.Stop())(t)
	if outcome.Through > 0 {
		t.Errorf("at boot a stranger reached sshd: %v", outcome)
	}
	t.Logf("a stranger since the first instant: %v", outcome)
	c.knock()
}

// knock lets Alice in at her desk, and no one else.
func (c *computer) knock() {
	c.t.Helper()
	config := filepath.Join(c.t.TempDir(), "spa")
	c.alice(config, "import", c.path("/root/alice.token"))
	c.alice(config, "open", "ssh", "--host", "gw", "--for", "10m")
	conn := lab.Value(lab.Dial(c.client, alice, "192.0.2.1:22", lab.Patience))(c.t)
	conn.Close()
	c.dark()
}

// alice runs spa-client at her desk, with her files in a directory.
func (c *computer) alice(config string, args ...string) {
	c.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(c.path("/usr/local/bin/spa-client"), append(args, "--config", config)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	lab.Must(c.t, c.client.Start(cmd))
	if err := cmd.Wait(); err != nil {
		c.t.Fatalf("spa-client %v: %v\n%s\n%s", args, err, out.String(),
			c.run("journalctl -b --no-pager -u spa-server -u spa-guard"))
	}
}

func (c *computer) dark() {
	c.t.Helper()
	if conn, err := lab.Dial(c.client, stranger, "192.0.2.1:22", 400*time.Millisecond); err == nil {
		conn.Close()
		c.t.Error("a stranger reaches sshd")
	}
}

// TestBootAfterAccident: whatever happened to the files, after a reboot the guard is loaded. If the earlier settings
// suffice, Alice gets in.
func TestBootAfterAccident(t *testing.T) {
	c := guarded(t)
	c.up()
	c.knock()
	c.halt()
	for _, accident := range []struct {
		name, line, mend string // run as root while the computer is off
		in               bool   // Alice still gets in
	}{
		{name: "a mistake", line: `sed -i 's/for = "30s"/for = "30"/' /etc/spa/server.toml`, in: true},
		{name: "a newer version", line: `sed -i 's/^version = 1/version = 2/' /etc/spa/server.toml`, in: true},
		{name: "an empty file", line: `: > /etc/spa/server.toml`, in: true},
		{name: "no file", line: `rm /etc/spa/server.toml`, in: true},
		{name: "a directory in its place", line: `rm /etc/spa/server.toml; mkdir /etc/spa/server.toml`, in: true},
		{name: "no state directory", line: `sed -i 's|^version = 1|version = 1\nstate = "/srv/none"|' /etc/spa/server.toml`},
		{name: "no gate key", line: `rm /etc/spa/gate.key`},
		{name: "no clients", line: `rm -r /etc/spa/clients`},
		{name: "no state but the settings", line: `rm /etc/spa/journal /etc/spa/grants /etc/spa/lock /etc/spa/keeper; : > ` +
			`/etc/spa/server.toml`, in: true},
		{name: "a damaged ledger", line: `echo damaged > /etc/spa/grants`},
		{name: "a damaged copy of the settings", line: `printf damaged | dd of=/etc/spa/settings conv=notrunc 2>/dev/null`,
			in: true},
		{name: "a mistake in a drop-in", line: `mkdir /etc/systemd/system/spa-guard.service.d
printf '[Service]\nReadWritePaths=/none\n' > /etc/systemd/system/spa-guard.service.d/none.conf`, in: true,
			mend: "rm -r /etc/systemd/system/spa-guard.service.d"},
		{name: "no user spa", line: "cp /etc/passwd /srv/passwd; sed -i /^spa:/d /etc/passwd",
			mend: "cp /srv/passwd /etc/passwd"},
		{name: "a full disk, and no state", line: `rm -f /etc/spa/grants /etc/spa/settings /etc/spa/lock /etc/spa/keeper
mount -t tmpfs -o size=256k tmpfs /etc/spa; cp -a /srv/spa/server.toml /srv/spa/gate.key /srv/spa/clients /etc/spa
dd if=/dev/zero of=/etc/spa/full bs=4k 2>/dev/null || true`, mend: "umount /etc/spa"},
	} {
		c.off("rm -rf /srv/spa; cp -a /etc/spa /srv/spa")
		c.off(accident.line)
		c.plug()
		attempts := lab.Attempt(t, c.client, stranger, "192.0.2.1:22")
		c.up()
		outcome := lab.Value(attempts.Stop())(t)
		if outcome.Through > 0 {
			t.Errorf("%s: a stranger reached sshd: %v\n%s", accident.name, outcome,
				c.run("journalctl -b --no-pager -u spa-server -u spa-guard"))
		}
		reached := "nothing"
		if accident.in {
			c.knock()
			reached = "sshd, by a knock"
		}
		t.Logf("%-32s a stranger since the first instant: %v; Alice reached %s", accident.name+":", outcome, reached)
		if said, _ := c.try("journalctl -b --no-pager --quiet -p err -u spa-guard -u spa-server"); said == "" {
			t.Errorf("%s: the journal says nothing of it:\n%s", accident.name,
				c.run("journalctl -b --no-pager -u spa-guard -u spa-server"))
		}
		if t.Failed() {
			t.Fatal(accident.name)
		}
		c.halt()
		c.off(accident.mend + "\nrm -rf /etc/spa; cp -a /srv/spa /etc/spa")
	}
}
