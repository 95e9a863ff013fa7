package bastion

import (
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestJournal: with file = "journal" decisions and acts are in the journal of the real systemd, under the unit's
// sandbox, with their fields; after that was restarted, too.
func TestJournal(t *testing.T) {
	c := guarded(t)
	c.off(`sed -i 's/file = "audit.jsonl"/file = "journal"/' /etc/spa/server.toml`)
	c.up()
	granted := func(n int) {
		t.Helper()
		lab.Eventually(t, "the decision in the journal", func() bool {
			out := c.run("journalctl --sync; journalctl -b -o cat --no-pager SPA_CLIENT=alice SPA_VERDICT=granted")
			return strings.Count(out, "granted: open ssh for alice from 192.0.2.") == n
		})
	}
	c.knock()
	granted(1)
	c.run("systemctl restart systemd-journald.service")
	c.knock()
	granted(2)
	c.run("spa-keygen rotate alice --overlap 0 --out /root/new.token")
	out := c.run("journalctl --sync; journalctl -b -o cat --no-pager -p notice SPA_ACT=rotate")
	if !strings.Contains(out, "spa-keygen rotate for alice by user 0") {
		t.Errorf("the act: got %q", out)
	}
	if out := c.run("spa-server status"); !strings.Contains(out, "journal") || strings.Contains(out, "LOST") {
		t.Errorf("got %s", out)
	}
}

// TestMetricsSocketInTheUnit: the unit lets the server listen where its group may read, again after it was killed.
func TestMetricsSocketInTheUnit(t *testing.T) {
	c := guarded(t)
	c.off(`echo 'd /run/spa 0750 root www-data' > /etc/tmpfiles.d/spa-metrics.conf
sed -i 's|^# \[metrics\].*|[metrics]\nlisten = "unix:/run/spa/metrics.sock"|' /etc/spa/server.toml`)
	c.up()
	c.knock()
	page := "curl -s --unix-socket /run/spa/metrics.sock http://gateway/metrics | grep ^spa_guard_in_place"
	for range 2 {
		if out := c.run("stat -c %a:%U:%G /run/spa/metrics.sock; " + page); !strings.Contains(out, "660:") ||
			!strings.Contains(out, ":www-data") || !strings.Contains(out, "spa_guard_in_place 1") {
			t.Errorf("got %s", out)
		}
		c.run("systemctl kill -s KILL --kill-whom=main spa-server.service")
		c.knock()
	}
}
