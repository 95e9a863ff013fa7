package packages

import (
	"bytes"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

const (
	alice, stranger = "192.0.2.2", "192.0.2.3"
	guarded         = "192.0.2.1:22"
)

// testLife goes the way of the page, on a Debian with systemd: install, three commands, upgrade, downgrade, remove,
// install again, purge; then, in short, the same with the rpm.
func testLife(t *testing.T, dir string) {
	c := newComputer(t)
	c.put(dir)
	c.off(`cd /srv/packages
mv sallyport-server_*.deb server.deb; mv sallyport-client_*.deb client.deb
dpkg-deb -R server.deb newer
sed -i 's/^Version: .*/Version: 99.0/' newer/DEBIAN/control
dpkg-deb -Zgzip -z1 -b newer newer.deb`)
	c.inChroot()
	c.up()
	echo := lab.Value(lab.EchoServer(c.host, guarded))(t)
	t.Cleanup(func() { echo.Close() })

	c.strangersUser()
	out := c.run("apt-get install -y /srv/packages/server.deb /srv/packages/client.deb 2>&1")
	want(t, out, "nothing is guarded yet", "spa-server init")
	if c.reaches(stranger) != nil || c.enabled() {
		t.Fatalf("an installation enables or guards something:\n%s", out)
	}
	c.begin()
	c.opens()
	c.upgrade("apt-get install -y /srv/packages/newer.deb 2>&1")
	c.rotates()
	c.downgrade()
	c.remove()
	c.withoutSystemd()
	c.otherProcessor()
	c.purge()
	c.rpm()
}

// begin sets a gateway up, by the three commands of the page, and enables it.
func (c *computer) begin() {
	c.t.Helper()
	c.run(`spa-server init --address 192.0.2.1 --service ssh=tcp/22 --state /var/lib/spa
sed -i 's/^window = "30s"/window = "5s"/; s|^file = .*|file = "/var/log/spa/audit.jsonl"|' /etc/spa/server.toml
rm -f /root/alice.token
spa-keygen new alice --allow ssh --out /root/alice.token
systemctl enable --now spa-guard.service spa-server.service`)
	c.spaClient("import", "--replace", c.path("/root/alice.token"))
}

// want fails unless a text has all of these.
func want(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("the output lacks %q:\n%s", part, text)
		}
	}
}

// inChroot: an installation that runs in a chroot, as by an installer of systems, makes the user, and starts nothing.
func (c *computer) inChroot() {
	c.t.Helper()
	out := c.off("dpkg -i /srv/packages/server.deb 2>&1; id spa; dpkg -P sallyport-server 2>&1")
	want(c.t, out, "(spa)")
	if strings.Contains(out, "GUARD") || c.has("/var/lib/spa") || c.has("/usr/bin/spa-server") {
		c.t.Errorf("in a chroot:\n%s", out)
	}
	c.off("userdel spa")
}

// strangersUser: where a person is called spa, nothing is installed, and a command that is printed helps.
func (c *computer) strangersUser() {
	c.t.Helper()
	c.run("useradd --create-home --shell /bin/bash spa")
	out, err := c.try("apt-get install -y /srv/packages/server.deb 2>&1")
	if err == nil || c.has("/usr/bin/spa-server") {
		c.t.Errorf("with a person called spa it is installed:\n%s", out)
	}
	want(c.t, out, "usermod --login NAME spa && groupmod --new-name NAME spa", "Nothing was installed")
	c.run("usermod --login person spa && groupmod --new-name person spa")
}

func (c *computer) enabled() bool {
	_, err := c.try("systemctl is-enabled spa-guard.service || systemctl is-enabled spa-server.service")
	return err == nil
}

// reaches tries one connection to the guarded port.
func (c *computer) reaches(from string) error {
	conn, err := lab.Dial(c.client, from, guarded, 400*time.Millisecond)
	if err == nil {
		conn.Close()
	}
	return err
}

// spaClient runs spa-client on the other end of the cable.
func (c *computer) spaClient(args ...string) {
	c.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(c.path("/usr/bin/spa-client"), append(args, "--config", c.path("/root/config"))...)
	cmd.Stdout, cmd.Stderr = &out, &out
	lab.Must(c.t, c.client.Start(cmd))
	if err := cmd.Wait(); err != nil {
		c.t.Fatalf("spa-client %v: %v\n%s\n%s", args, err, out.String(), c.log())
	}
}

// opens: Alice gets in by a knock, and no one else.
func (c *computer) opens() {
	c.t.Helper()
	if c.reaches(stranger) == nil || c.reaches(alice) == nil {
		c.t.Fatal("the port is open before a knock")
	}
	c.spaClient("open", "ssh", "--host", "gw", "--for", "10m", "--timeout", "1m")
	if err := c.reaches(alice); err != nil {
		c.t.Fatalf("after a knock: %v\n%s", err, c.log())
	}
}

// upgrade: under a flood of packets of a knock's length, a session and a grant go on, and a stranger never gets in.
func (c *computer) upgrade(command string) {
	c.t.Helper()
	session := lab.Value(lab.Dial(c.client, alice, guarded, lab.Patience))(c.t)
	defer session.Close()
	before := c.run("systemctl show -p MainPID spa-server.service")
	flood := c.flood()
	attempts := lab.Attempt(c.t, c.client, stranger, guarded)
	out := c.run(command)
	outcome := lab.Value(attempts.Stop())(c.t)
	flood()
	if outcome.Through > 0 {
		c.t.Errorf("a stranger got in during the upgrade: %v\n%s", outcome, out)
	}
	c.t.Logf("a stranger during the upgrade: %v", outcome)
	if after := c.run("systemctl show -p MainPID spa-server.service"); after == before {
		c.t.Errorf("the new server does not run: %s", after)
	}
	if err := lab.Echoes(session, "still there\n", lab.Patience); err != nil {
		c.t.Errorf("the session: %v", err)
	}
	if err := c.reaches(alice); err != nil {
		c.t.Errorf("the grant: %v\n%s", err, c.log())
	}
	want(c.t, c.run("spa-server grants"), "alice")
}

// flood sends packets of a knock's length until the returned function is called.
func (c *computer) flood() (stop func()) {
	done, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- c.client.Do(func() error {
			conn, err := net.Dial("udp", "192.0.2.1:62201")
			if err != nil {
				return err
			}
			defer conn.Close()
			for tick := time.NewTicker(time.Millisecond); ; {
				select {
				case <-done:
					return nil
				case <-tick.C:
					for range 10 {
						_, _ = conn.Write(make([]byte, 353)) // the port may be shut
					}
				}
			}
		})
	}()
	return func() {
		close(done)
		lab.Must(c.t, <-ended)
	}
}

// rotates: by the package's file, logrotate starts a new log, which the server writes to.
func (c *computer) rotates() {
	c.t.Helper()
	log := "/var/log/spa/audit.jsonl"
	before := c.run("stat -c %i " + log)
	c.run("logrotate --force /etc/logrotate.d/sallyport")
	if after := c.run("stat -c %i " + log); after == before {
		c.t.Errorf("%s is still the same file", log)
	}
	c.spaClient("close", "ssh", "--host", "gw")
	want(c.t, c.run("cat "+log), `"alice"`)
	c.opens()
}

// downgrade: the older version says which file it cannot read, and the ports stay shut.
func (c *computer) downgrade() {
	c.t.Helper()
	c.run(`printf '\011' | dd of="$(find /etc/spa /var/lib/spa -name grants)" bs=1 seek=16 conv=notrunc 2>&1`)
	attempts := lab.Attempt(c.t, c.client, stranger, guarded)
	out := c.run("apt-get install -y --allow-downgrades /srv/packages/server.deb 2>&1")
	want(c.t, out, "spa-server did not start again", "not a grant ledger of this version: move it away")
	c.run(`rm "$(find /etc/spa /var/lib/spa -name grants)"; systemctl restart spa-server.service`)
	if outcome := lab.Value(attempts.Stop())(c.t); outcome.Through > 0 {
		c.t.Errorf("a stranger got in during the downgrade: %v\n%s", outcome, out)
	}
}

// remove: it says that the ports are open from now on, and keeps the files. Installed again, the gateway goes on.
func (c *computer) remove() {
	c.t.Helper()
	out := c.run("apt-get remove -y sallyport-server 2>&1")
	want(c.t, out, "THE GUARD IS REMOVED NOW", `["tcp/22"]`, "the guard is gone",
		"/etc/spa, with the keys, is still there")
	if err := c.reaches(stranger); err != nil || !c.has("/etc/spa/gate.key") {
		c.t.Errorf("after the removal: %v", err)
	}
	out = c.run("apt-get install -y /srv/packages/server.deb 2>&1")
	want(c.t, out, "systemctl enable --now spa-guard spa-server")
	if c.enabled() {
		c.t.Error("installed again, it is enabled")
	}
	c.run("systemctl enable --now spa-guard.service spa-server.service")
	c.opens()
}

// withoutSystemd: dpkg works, and says what is left to do.
func (c *computer) withoutSystemd() {
	c.t.Helper()
	out := c.run("unshare -m sh -ec 'mount -t tmpfs tmpfs /run/systemd; dpkg -i /srv/packages/newer.deb' 2>&1")
	want(c.t, out, "restart it as you started it")
}

// otherProcessor: a package for another processor is refused, and the server goes on.
func (c *computer) otherProcessor() {
	c.t.Helper()
	out, err := c.try(`cd /srv/packages; sed -i 's/^Architecture: .*/Architecture: s390x/' newer/DEBIAN/control
dpkg-deb -Zgzip -z1 -b newer other.deb; dpkg -i other.deb 2>&1`)
	if err == nil {
		c.t.Errorf("it is installed:\n%s", out)
	}
	c.run("spa-server --version; spa-server status")
}

// purge takes everything, and leaves the user.
func (c *computer) purge() {
	c.t.Helper()
	out := c.run("apt-get purge -y sallyport-server sallyport-client 2>&1")
	want(c.t, out, "THE GUARD IS REMOVED NOW")
	for _, name := range append([]string{"etc/spa", "var/lib/spa", "var/log/spa",
		"etc/systemd/system/multi-user.target.wants/spa-server.service"}, needed...) {
		if c.has("/" + name) {
			c.t.Errorf("after the purge /%s is still there", name)
		}
	}
	if err := c.reaches(stranger); err != nil {
		c.t.Errorf("after the purge: %v", err)
	}
	c.run("id spa")
}

// rpm installs, upgrades and removes the rpm, whose scripts are called in another way.
func (c *computer) rpm() {
	c.t.Helper()
	rpm := "rpm --dbpath /srv/rpm --nodeps "
	out := c.run(rpm + "-i /srv/packages/sallyport-server-*.rpm /srv/packages/sallyport-client-*.rpm 2>&1")
	want(c.t, out, "nothing is guarded yet")
	if c.enabled() {
		c.t.Errorf("the rpm enables something:\n%s", out)
	}
	c.begin()
	c.opens()
	c.upgrade(rpm + "-U --replacepkgs /srv/packages/sallyport-server-*.rpm 2>&1")
	want(c.t, c.run(rpm+"-e sallyport-server 2>&1"), "THE GUARD IS REMOVED NOW", "/etc/spa, with the keys, is still there")
	if err := c.reaches(stranger); err != nil || c.has("/usr/bin/spa-server") || c.enabled() {
		c.t.Errorf("after the removal of the rpm: %v", err)
	}
}
