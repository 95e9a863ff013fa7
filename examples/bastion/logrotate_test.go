package bastion

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// rotations are lines of logrotate.conf(5), and whether a server cannot go on after them.
var rotations = []struct {
	create string
	fails  bool
}{
	{"create", false}, // as in that file
	{"create 0600 spa spa", false},
	{"copytruncate", false},
	{"create 0440", true},
	{"nocreate", false}, // the directory is the server's
}

// TestLogrotate: the real one, run by its own unit, with the lines of this directory and with other usual ones. No line
// is lost. If the server cannot continue in the new file, the rotation fails with a hint.
func TestLogrotate(t *testing.T) {
	lab.NeedProgram(t, "logrotate", "apt-get install logrotate")
	c := guarded(t)
	lab.Must(t, copyFile("spa.logrotate", c.path("/etc/logrotate.d/spa")))
	c.off("spa-server move-state /var/lib/spa; mkdir -p /etc/systemd/system/logrotate.service.d")
	// Now, and nothing else.
	c.off(`printf '[Service]\nExecStart=\nExecStart=/usr/sbin/logrotate -v -f /etc/logrotate.d/spa\n' > ` +
		`/etc/systemd/system/logrotate.service.d/now.conf`)
	c.up()
	c.knock()
	config := filepath.Join(t.TempDir(), "spa")
	knocks := 1
	client := func(args ...string) {
		t.Helper()
		cmd := exec.Command(c.path("/usr/local/bin/spa-client"), append(args, "--config", config)...)
		if out, code := lab.Run(t, c.client, cmd); code != 0 {
			t.Fatalf("spa-client %v: exit %d\n%s", args, code, out)
		}
	}
	client("import", c.path("/root/alice.token"))
	knock := func() {
		t.Helper()
		client("open", "ssh", "--host", "gw")
		knocks++
		if lines := strings.Count(c.run("cat /var/lib/spa/audit.jsonl* | zcat -f"), `"verdict":"granted"`); lines != knocks {
			t.Errorf("%d lines of %d knocks", lines, knocks)
		}
	}
	for _, test := range rotations {
		c.run("sed -i 's/^\t\\(create.*\\|nocreate\\|copytruncate\\)$/\t" + test.create +
			"/; s/^\tdelaycompress//; s/^\tcompress//' /etc/logrotate.d/spa")
		before := c.run("cat /etc/logrotate.d/spa")
		_, err := c.try("systemctl start logrotate.service")
		log := c.run("journalctl -b --no-pager -o cat -u logrotate.service -n 80")
		if (err != nil) != test.fails {
			t.Errorf("%s: %v, want it to fail: %v\n%s\n%s", test.create, err, test.fails, before, log)
		}
		knock()
		if test.fails {
			mend := c.missingLog()
			if mend == "" {
				t.Fatalf("%s: status, check and log do not say what to do:\n%s", test.create, c.run("spa-server status"))
			}
			c.run(mend)
			knock()
		}
		c.run("systemctl restart spa-server")
		knock()
		if out := c.run("spa-server status"); strings.Contains(out, "NOT THERE") || strings.Contains(out, "LOST") {
			t.Errorf("%s: in the end\n%s", test.create, out)
		}
	}
}

// missingLog returns the command that mends a missing audit log, if status, check and the log all name it.
func (c *computer) missingLog() string {
	check := ""
	if out, err := c.try("spa-server check"); err != nil {
		check = out
	}
	_, mend, _ := strings.Cut(c.run("spa-server status"), "NOT THERE: ")
	_, mend, _ = strings.Cut(mend, "\n")
	mend, _, _ = strings.Cut(mend, "\n")
	mend = strings.TrimSpace(mend)
	if !strings.Contains(check, mend) ||
		!strings.Contains(c.run("journalctl -b --no-pager -o cat -u spa-server -n 20"), mend) {
		return ""
	}
	return mend
}
