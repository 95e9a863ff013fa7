package bastion

import (
	"bufio"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sallyport/spa/lab"
)

const alice, stranger = "192.0.2.2", "192.0.2.3"

// config returns the path of a file in the bastion's /etc/spa.
func (r *runbook) config(name string) string {
	return filepath.Join(r.bastion.files["/etc"], "spa", name)
}

// hurry makes the window short: after a restore the page waits for one.
func (r *runbook) hurry(string) {
	r.t.Helper()
	r.edit(`window = "30s"`, `window = "5s"`)
}

// edit changes server.toml by hand.
func (r *runbook) edit(before, now string) {
	r.t.Helper()
	data := lab.Value(os.ReadFile(r.config("server.toml")))(r.t)
	text := strings.Replace(string(data), before, now, 1)
	if text == string(data) {
		r.t.Fatalf("no %s in\n%s", before, data)
	}
	lab.Must(r.t, os.WriteFile(r.config("server.toml"), []byte(text), 0o640))
}

func (r *runbook) dark(string) {
	r.t.Helper()
	if r.reaches(stranger) {
		r.t.Error("a stranger reaches the port")
	}
}

// everybody: the guard is removed, and the server has exited.
func (r *runbook) everybody(string) {
	r.t.Helper()
	for unit, p := range r.units.runs {
		lab.Eventually(r.t, unit+" to end", p.ended)
	}
	lab.Eventually(r.t, "the port to be open for everybody", func() bool { return r.reaches(stranger) })
}

// open: only Alice's address gets in. She starts a session.
func (r *runbook) open(string) {
	r.t.Helper()
	r.dark("")
	conn, err := lab.Dial(r.home.host, alice, "192.0.2.1:22", lab.Patience)
	if err != nil {
		r.t.Fatalf("what Alice has opened: %v", err)
	}
	r.t.Cleanup(func() { conn.Close() })
	r.session = conn
}

func (r *runbook) confirmed(string) {
	r.t.Helper()
	lab.Eventually(r.t, "the guard to be confirmed", func() bool {
		return strings.Contains(r.foreground.said(r.t), "confirmed")
	})
}

func (r *runbook) listed(output string) {
	r.t.Helper()
	for _, name := range []string{"alice", "bob", "carol"} {
		if !strings.Contains(output, name) {
			r.t.Errorf("got %q, want it to list %s", output, name)
		}
	}
}

const bob = "192.0.2.5"

// bob connects from a desk beside Alice's, and starts a session.
func (r *runbook) bob(string) {
	r.t.Helper()
	config := filepath.Join(r.t.TempDir(), "bob")
	lab.Must(r.t, copyFile(filepath.Join(r.bastion.dir, "bob.token"), filepath.Join(r.home.dir, "bob.token")))
	out, err := r.home.run(r.t,
		"spa-client import --config "+config+" bob.token; spa-client open ssh --host gw --for 10m --source "+bob+" --config "+
			config)
	if err != nil {
		r.t.Fatalf("bob: %v\n%s", err, out)
	}
	conn := lab.Value(lab.Dial(r.home.host, bob, "192.0.2.1:22", lab.Patience))(r.t)
	r.t.Cleanup(func() { conn.Close() })
	r.bobs = conn
	r.greets(conn)
}

// greets reads sshd's banner.
func (r *runbook) greets(conn net.Conn) {
	r.t.Helper()
	conn.SetReadDeadline(time.Now().Add(lab.Patience))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "SSH-2.0-") {
		r.t.Errorf("the session: got %q, %v", line, err)
	}
}

func (r *runbook) bobStays(string) {
	r.t.Helper()
	lab.Eventually(r.t, "what bob has open to be shut", func() bool { return !r.reaches(bob) })
}

func (r *runbook) bobIsGone(string) {
	r.t.Helper()
	r.bobs.SetReadDeadline(time.Now().Add(lab.Patience))
	if _, err := r.bobs.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		r.t.Errorf("bob's session goes on (%v)", err)
	}
	r.edit(`for = "30s"`, `for = "10m"`) // for the next reload; a new version is built while such a grant is live
}

// watched: Alice's knock is shown, and recorded in a new log after the old one was moved.
func (r *runbook) watched(string) {
	r.t.Helper()
	lab.Eventually(r.t, "watch to show what Alice does", func() bool {
		return strings.Contains(r.foreground.said(r.t), "alice")
	})
	lab.Eventually(r.t, "a new log", func() bool {
		data, err := os.ReadFile(filepath.Join(r.bastion.files["/var/lib"], "spa", "audit.jsonl"))
		return err == nil && strings.Contains(string(data), `"client":"alice"`)
	})
}

// lost is the end of the bastion: only the backup and the source are left.
func (r *runbook) lost(string) {
	r.t.Helper()
	info := lab.Value(os.Stat(filepath.Join(r.bastion.dir, "spa-backup.tgz")))(r.t)
	if info.Mode().Perm() != 0o600 {
		r.t.Errorf("the backup is readable by others: %v", info.Mode())
	}
	r.units.systemctl(r.t, []string{"stop", "spa-server.service"})
	if out, err := r.bastion.run(r.t, "spa-server teardown; userdel spa; rm -r /etc/spa /var/lib/spa "+
		"/etc/systemd/system/spa-* "+
		"/usr/local/bin/spa-*"); err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
	r.everybody("")
}

// livedOn: a restart ends no grant or session.
func (r *runbook) livedOn(string) {
	r.t.Helper()
	r.dark("")
	r.greets(r.session)
	if !r.reaches(alice) {
		r.t.Error("Alice's grant from before is gone")
	}
}

func (r *runbook) nothingLeft(string) {
	r.t.Helper()
	for _, pattern := range []string{"/etc/spa*", "/var/lib/*", "/etc/systemd/system/*", "/usr/local/bin/*",
		"/run/*spa*"} {
		place, name := filepath.Split(pattern)
		for seen, real := range r.bastion.files {
			if rest, ok := strings.CutPrefix(filepath.Clean(place), seen); ok {
				place = real + rest
				break
			}
		}
		left, err := filepath.Glob(filepath.Join(place, name))
		if err != nil || len(left) > 0 {
			r.t.Errorf("left behind: %v (%v)", left, err)
		}
	}
	passwd := lab.Value(os.ReadFile(filepath.Join(r.bastion.files["/etc"], "passwd")))(r.t)
	if strings.Contains(string(passwd), "spa:") {
		r.t.Errorf("the user is left behind:\n%s", passwd)
	}
	r.everybody("")
}

// doorLeft: the trial of the second door was one of its uses.
func (r *runbook) doorLeft(output string) {
	r.t.Helper()
	if !strings.Contains(output, "2 of 3 uses left, the last was at") {
		r.t.Errorf("got %q, want 2 of 3 uses left", output)
	}
}
