package bastion

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// probe prints who runs it, with which rights. With a word, it leaves a daemon behind and does not end.
const probe = `#!/bin/sh
rights=$(grep -E '^(Cap|NoNewPrivs)' /proc/self/status | tr -s '\t\n' ' ')
echo "$SPA_SERVICE-$1: $(id -un) $rights"
case $1 in
run) file=$(mktemp); chown "$(id -u)" "$file" && rm "$file" &&
	echo "nice $(($(nice -n 3 nice) - $(nice))), $(ulimit -p) processes" ;;
late) setsid setsid sleep 7654 & exec sleep 7654 ;;
esac
`

// none is what a program without any capability reads in /proc/self/status.
const none = "CapInh: 0000000000000000 CapPrm: 0000000000000000 CapEff: 0000000000000000 CapBnd: 00000080000030e0 " +
	"CapAmb: 0000000000000000 NoNewPrivs: 1"

const services = `
[service.plain]
run = ["/usr/local/lib/spa/probe", "run"]
run_after = ["/usr/local/lib/spa/probe", "after"]
user = "backup"

[service.late]
run = ["/usr/local/lib/spa/probe", "late"]
user = "backup"
timeout = "1s"

[service.other]
run = ["/usr/bin/systemctl", "restart", "other.service"]
user = "root"

[service.archive]
run = ["/usr/local/lib/spa/backup", "/srv/data", "/var/backups/data"]
user = "backup"
`

// TestActionsInTheUnit: with the drop-in, installed as its page says, the unit's server runs programs as other users,
// who get no right of the server's. Without it the server does not start, and the guard stays.
func TestActionsInTheUnit(t *testing.T) {
	c := guarded(t)
	for _, name := range []string{"backup", "security-group", "message", "actions.conf"} {
		lab.Must(t, copyFile("../actions/"+name, c.path("/root/"+name)))
	}
	lab.Must(t, os.WriteFile(c.path("/root/services.toml"), []byte(services), 0o644))
	lab.Must(t, os.WriteFile(c.path("/root/probe"), []byte(probe), 0o644))
	c.off(`echo ReadWritePaths=/var/backups/data >> /root/actions.conf
install -D -m 755 /root/probe /usr/local/lib/spa/probe; cat /root/services.toml >> /etc/spa/server.toml
spa-keygen set alice allow=ssh,plain,late,other,archive
mkdir -p /srv/data /var/backups/data; echo precious > /srv/data/file; chown backup /srv/data/file /var/backups/data
printf '[Service]\nExecStart=/bin/sleep infinity\n' > /etc/systemd/system/other.service`)
	c.up()
	lab.Eventually(t, "the reason why the server does not start", func() bool {
		log := c.run("journalctl -b --no-pager -o cat -u spa-server")
		return strings.Contains(log, "install -D -m 644 examples/actions/actions.conf /etc/systemd/system/")
	})
	c.dark()

	for _, line := range setUp(t) {
		if out, err := c.try("cd /root; " + line); err != nil && line != "spa-server check" { // no server runs yet
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	c.knock()
	before := c.run("systemctl show -P InvocationID other.service")
	config := filepath.Join(t.TempDir(), "spa")
	c.alice(config, "import", c.path("/root/alice.token"))
	c.alice(config, "open", "plain", "late", "other", "archive", "--host", "gw")
	c.alice(config, "close", "plain", "--host", "gw")
	var log string
	for _, want := range []string{
		"plain-run: backup " + none, "plain-after: backup " + none, "late-late: backup " + none, "program timed out",
		`"nice 3, 512 processes"`,
	} {
		lab.Eventually(t, want, func() bool {
			log = c.run("journalctl --sync; journalctl -b --no-pager -o cat -u spa-server")
			return strings.Contains(log, want)
		})
	}
	lab.Eventually(t, "a restart of the other service", func() bool {
		return c.run("systemctl show -P InvocationID other.service") != before
	})
	lab.Eventually(t, "an archive", func() bool {
		out, _ := c.try("tar -xzOf /var/backups/data/archive-*.tar.gz ./file")
		return out == "precious\n"
	})
	if out := c.run("systemctl show -P OOMPolicy spa-server.service"); out != "continue\n" {
		t.Errorf("what takes too much memory ends the server: %s", out)
	}
	if out, _ := c.try("pgrep -f '[s]leep 7654'"); out != "" {
		t.Errorf("these outlive their time: %s", out)
	}
	if out := c.run("spa-server check; spa-server status"); strings.Contains(out, "problem:") {
		t.Errorf("got %s", out)
	}
}

// setUp returns the commands by which the page sets programs up.
func setUp(t *testing.T) []string {
	page := string(lab.Value(os.ReadFile("../actions/README.md"))(t))
	_, commands, _ := strings.Cut(page, "## Set it up\n\n```sh\n")
	commands, _, ok := strings.Cut(commands, "\n```")
	if !ok || strings.Count(commands, "\n") != 4 {
		t.Fatalf("the page has %q", commands)
	}
	return strings.Split(commands, "\n")
}
