package action

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// gateway writes a server.toml with these actions and returns what it says.
func gateway(t testing.TB, actions map[string]config.Action) *config.Config {
	t.Helper()
	lab.NeedRoot(t)
	c := config.Default(t.TempDir())
	c.Name, c.Address, c.ServerID = "gw", "192.0.2.1", keys.NewServerID()
	for name, a := range actions {
		s := config.NewService(name)
		s.Action = a
		c.Services = append(c.Services, s)
	}
	lab.Must(t, config.Create(c.Dir, c))
	return lab.Value(config.Load(c.Dir))(t)
}

// shell is an action that runs a script, which exists for tests only.
func shell(script string, timeout time.Duration) config.Action {
	return config.Action{Run: []string{"/bin/sh", "-c", script}, User: "nobody", Timeout: timeout}
}

func started(t testing.TB, c *config.Config) *Runner {
	t.Helper()
	r := lab.Value(Start(c))(t)
	t.Cleanup(func() { r.Close() })
	return r
}

func job(service string) *Job {
	return &Job{Grant: 0xabc, Hook: Begin, Service: service, Client: "alice", Address: netip.MustParseAddr("192.0.2.2"),
		Until: time.Unix(1900000000, 0)}
}

// run starts jobs and returns the events of each until all are over.
func (r *Runner) run(t testing.TB, jobs ...*Job) [][]Event {
	t.Helper()
	events, of := make([][]Event, len(jobs)), make(map[uint64]int)
	for i, j := range jobs {
		of[lab.Value(r.send(request{Job: j}, nil))(t)] = i
	}
	for left := len(jobs); left > 0; {
		n, ok := <-r.events
		if !ok {
			t.Fatal("the runner has ended")
		}
		if n.event.over() {
			left--
		}
		events[of[n.number]] = append(events[of[n.number]], *n.event)
	}
	return events
}

// one runs a script and returns its events.
func one(t testing.TB, script string, timeout time.Duration) []Event {
	t.Helper()
	return started(t, gateway(t, map[string]config.Action{"a": shell(script, timeout)})).run(t, job("a"))[0]
}

func printed(events []Event) []string {
	var lines []string
	for _, e := range events {
		if e.What == Printed {
			lines = append(lines, e.Text)
		}
	}
	return lines
}

// TestEnvironment: a program has the values of its grant and hardly anything else, no input, and no rights but those of
// its user.
func TestEnvironment(t *testing.T) {
	t.Setenv("SECRET", "x")
	events := one(t, `env | sort; id -un; cat; pwd; ls /proc/self/fd | wc -l; 
		grep -E "^(CapPrm|NoNewPrivs|SigIgn)" /proc/self/status; exit 3`, time.Minute)
	got := printed(events)
	want := []string{"HOME=/nonexistent", "LOGNAME=nobody",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"PWD=/", "SPA_ADDRESS=192.0.2.2", "SPA_CLIENT=alice", "SPA_GRANT=0000000000000abc", "SPA_SERVICE=a",
		"SPA_UNTIL=2030-03-17T17:46:40Z", "USER=nobody", "nobody", "/", "4"}
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	rest := strings.Join(got[min(len(got), len(want)):], " ")
	for _, word := range []string{"CapPrm: 0000000000000000", "NoNewPrivs: 1"} {
		if !strings.Contains(rest, word) {
			t.Errorf("it lacks %s: %s", word, rest)
		}
	}
	_, ignored, _ := strings.Cut(rest, "SigIgn: ")
	ignored, _, _ = strings.Cut(ignored, " ")
	const libc = 1<<31 | 1<<32 // signals 32 and 33, which no program may change (nptl(7))
	if mask, err := strconv.ParseUint(ignored, 16, 64); err != nil || mask&^libc != 0 {
		t.Errorf("it ignores signals: %s", rest)
	}
	if last := events[len(events)-1]; last.What != Ended || last.Exit != 3 || events[0].What != Started {
		t.Errorf("got %+v", events)
	}
}

// TestKilledWithChildren: when its time is over, a program is killed with everything that it started, even if that
// ignores SIGTERM or has forked away into a session of its own.
func TestKilledWithChildren(t *testing.T) {
	t.Parallel()
	marker := fmt.Sprint(9_000_000 + os.Getpid())
	for name, script := range map[string]string{
		"hangs":             "sleep " + marker,
		"ignores SIGTERM":   "trap '' TERM; while :; do sleep " + marker + "; done",
		"a child":           "sleep " + marker + " & exec sleep " + marker,
		"forks away":        "setsid sh -c 'trap \"\" TERM; setsid sleep " + marker + " & sleep " + marker + "' & exit 0",
		"a daemon":          "(setsid setsid sleep " + marker + " >/dev/null 2>&1 &) ; exit 0",
		"closes its output": "exec sleep " + marker + " >&- 2>&-",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			events := one(t, script, time.Second)
			if last := events[len(events)-1]; last.What != TooLong {
				t.Errorf("got %+v", events)
			}
		})
	}
	t.Cleanup(func() {
		if left := running(marker); len(left) > 0 {
			t.Errorf("left running: %v", left)
		}
	})
}

// running returns the processes with this word in their command line.
func running(word string) []string {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []string
	for _, path := range lines {
		text, _ := os.ReadFile(path)
		if strings.Contains(string(text), word) {
			found = append(found, path)
		}
	}
	return found
}

// TestEndsEarly: a program that ends within its time is not killed, and neither is what it leaves behind, which the
// action waits for.
func TestEndsEarly(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]Event{
		"exit 0":                              {What: Ended},
		"(setsid sleep 0.1; echo b) & echo a": {What: Ended},
		"kill -9 $$":                          {What: Killed, Exit: 9},
	} {
		events := one(t, script, time.Minute)
		if got := events[len(events)-1]; got != want {
			t.Errorf("%s: got %+v", script, events)
		}
		if strings.Contains(script, "echo") && len(printed(events)) != 2 {
			t.Errorf("%s: it printed %q", script, printed(events))
		}
	}
}

// TestOutput: as much of the output as is passed on, on one line a line, printable. The rest is counted, and gigabytes
// of it do not stop the program.
func TestOutput(t *testing.T) {
	events := one(t, `printf 'a\033[2J\n\n\200b\n' >&2; head -c 300000000 /dev/zero; echo; echo end`, time.Minute)
	lines, last := printed(events), events[len(events)-1]
	size := 0
	for _, line := range lines {
		size += len(line)
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("it is not printable: %q", line)
		}
	}
	if last.What != Ended || last.Dropped < 299_000_000 || size > 8*MaxOutput || len(lines) < 2 ||
		!strings.HasPrefix(lines[0], "a") {
		t.Errorf("%d lines of %d bytes, %+v", len(lines), size, last)
	}
}

// TestLines: short lines do not fill the log.
func TestLines(t *testing.T) {
	events := one(t, "yes | head -n 1000", time.Minute)
	lines, last := printed(events), events[len(events)-1]
	if len(lines) != MaxLines || last.Dropped != 2*(1000-MaxLines) {
		t.Errorf("%d lines, %+v", len(lines), last)
	}
}

// TestNotStarted: a job that is not one, or whose program is not to be trusted, starts nothing.
func TestNotStarted(t *testing.T) {
	missing := config.Action{Run: []string{"/nowhere/at/all"}, User: "nobody", Timeout: time.Minute}
	unknown := shell("exit", time.Minute)
	unknown.User = "no-such-user"
	r := started(t, gateway(t, map[string]config.Action{"a": shell("exit 0", time.Minute), "missing": missing,
		"unknown": unknown}))
	for name, change := range map[string]func(j *Job){
		"a missing program": func(j *Job) { j.Service = "missing" },
		"an unknown user":   func(j *Job) { j.Service = "unknown" },
		"no service":        func(j *Job) { j.Service = "b" },
		"no such program":   func(j *Job) { j.Hook = End },
		"no hook":           func(j *Job) { j.Hook = "/bin/sh" },
		"a client":          func(j *Job) { j.Client = "a\nLD_PRELOAD=x" },
		"no client":         func(j *Job) { j.Client = "" },
		"no address":        func(j *Job) { j.Address = netip.Addr{} },
		"a zone":            func(j *Job) { j.Address = netip.MustParseAddr("fe80::1%$(reboot)") },
		"another notation":  func(j *Job) { j.Address = netip.MustParseAddr("::ffff:192.0.2.2") },
		"a year 10000":      func(j *Job) { j.Until = time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -7200)) },
		"a time":            func(j *Job) { j.Until = time.Unix(1<<60, 0) },
	} {
		j := job("a")
		if change(j); name == "a time" {
			if err := j.check(); err == nil { // it has no encoding in JSON
				t.Errorf("%s: no error", name)
			}
			continue
		}
		events := r.run(t, j)[0]
		if len(events) != 1 || events[0].What != Failed || events[0].Text == "" {
			t.Errorf("%s: got %+v", name, events)
		}
	}
	if r.Trouble("missing") == nil || r.Trouble("unknown") == nil || r.Trouble("a") != nil {
		t.Errorf("unfit: %v", r.Unfit())
	}
}

// TestProgramsOthersCanChange: a program that a user other than root could replace is refused, as is one in a directory
// of such a user.
func TestProgramsOthersCanChange(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, mode os.FileMode, uid int) {
		t.Helper()
		lab.Must(t, os.MkdirAll(filepath.Dir(in(name)), 0o755))
		lab.Must(t, os.WriteFile(in(name), []byte("#!/bin/sh\n"), 0o755))
		lab.Must(t, os.Chown(in(name), uid, uid))
		lab.Must(t, os.Chmod(in(name), mode))
	}
	write("good", 0o755, 0)
	write("group", 0o775, 0)
	write("all", 0o757, 0)
	write("his", 0o755, 65534)
	write("text", 0o644, 0)
	write("sub/good", 0o755, 0)
	write("open/good", 0o755, 0)
	lab.Must(t, os.Chmod(in("open"), 0o777))
	write("his-dir/good", 0o755, 0)
	lab.Must(t, os.Chown(in("his-dir"), 65534, 0))
	for link, target := range map[string]string{"link": "sub/../good", "into": "open/good", "loop": "loop",
		"away": "nowhere"} {
		lab.Must(t, os.Symlink(target, in(link)))
	}
	for name, good := range map[string]bool{"good": true, "sub/good": true, "link": true, "group": false, "all": false,
		"his": false, "text": false, "open/good": false, "his-dir/good": false, "into": false, "loop": false,
		"away": false, "none": false, "sub": false} {
		if err := checkProgram(in(name)); good != (err == nil) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestManyAtOnce: however many jobs come at once, a limited number runs at a time, and all run in the end.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	lab.Must(t, os.Chmod(dir, 0o777))
	lab.Must(t, os.Chmod(filepath.Dir(dir), 0o755))
	script := `mkdir ` + dir + `/$$; ls ` + dir + ` | wc -l; sleep 0.05; rmdir ` + dir + `/$$`
	r := started(t, gateway(t, map[string]config.Action{"a": shell(script, time.Minute)}))
	jobs := slices.Repeat([]*Job{job("a")}, Burst)
	most := 0
	for _, events := range r.run(t, jobs...) {
		lines := printed(events)
		if len(lines) != 1 {
			t.Fatalf("got %+v", events)
		}
		n := lab.Value(strconv.Atoi(lines[0]))(t)
		most = max(most, n)
	}
	if most > MaxRunning {
		t.Errorf("%d ran at a time", most)
	}
}

// TestPace: more than a burst has to wait.
func TestPace(t *testing.T) {
	now := time.Now()
	p := newPace(now)
	for i := range Burst {
		if d := p.wait(now); d != 0 {
			t.Fatalf("start %d waits for %v", i, d)
		}
	}
	if d := p.wait(now); d != time.Minute/PerMinute {
		t.Errorf("one more waits for %v", d)
	}
	p.wait(now.Add(time.Hour))
	if d := p.wait(now.Add(time.Hour)); d != 0 {
		t.Errorf("an hour later it waits for %v", d)
	}
}

// TestReload: the runner reads server.toml itself, believes nobody about it, and refuses what it cannot start.
func TestReload(t *testing.T) {
	t.Parallel()
	c := gateway(t, map[string]config.Action{"a": shell("exit 0", time.Minute)})
	r := started(t, c)
	path := filepath.Join(c.Dir, config.FileName)
	before := lab.Value(os.ReadFile(path))(t)
	if err := r.Reload([]byte("x")); err == nil {
		t.Error("another text than the file's was taken")
	}
	lab.Must(t, r.Reload(before))
	for name, text := range map[string]string{
		"a mistake":         string(before) + "x = 1\n",
		"a missing program": strings.Replace(string(before), "/bin/sh", "/nowhere", 1),
	} {
		lab.Must(t, os.WriteFile(path, []byte(text), 0o640))
		if err := r.Reload([]byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	lab.Must(t, os.WriteFile(path, before, 0o640))
	lab.Must(t, os.Chown(path, 65534, 0))
	if err := r.Reload(before); err == nil {
		t.Error("a server.toml that another user can write was read")
	}
	lab.Must(t, os.Chown(path, 0, 0))
	after := strings.Replace(string(before), "exit 0", "exit 7", 1)
	lab.Must(t, os.WriteFile(path, []byte(after), 0o640))
	if e := r.run(t, job("a"))[0]; e[len(e)-1].Exit != 0 {
		t.Errorf("before the reload: %+v", e)
	}
	lab.Must(t, r.Reload([]byte(after)))
	if e := r.run(t, job("a"))[0]; e[len(e)-1].Exit != 7 {
		t.Errorf("after the reload: %+v", e)
	}
	lab.Must(t, r.Undo())
	if e := r.run(t, job("a"))[0]; e[len(e)-1].Exit != 0 {
		t.Errorf("after a reload that failed: %+v", e)
	}
}

// TestRunnerKilled: when the runner is killed, its programs still end on time, with their children, and the daemon is
// told.
func TestRunnerKilled(t *testing.T) {
	t.Parallel()
	marker := fmt.Sprint(8_000_000 + os.Getpid())
	script := "setsid sleep " + marker + " & sleep " + marker
	r := started(t, gateway(t, map[string]config.Action{"a": shell(script, time.Second)}))
	lab.Value(r.send(request{Job: job("a")}, nil))(t)
	if n := <-r.events; n.event.What != Started {
		t.Fatalf("got %+v", n.event)
	}
	lab.Must(t, syscall.Kill(r.PID, syscall.SIGKILL))
	for range r.events {
	}
	if r.Trouble("a") == nil || r.Reload(nil) == nil {
		t.Error("it does not say that the runner has ended")
	}
	lab.Eventually(t, "the end of what the program started", func() bool { return len(running(marker)) == 0 })
}

// TestAboveKilled: if the process above a program is killed or stopped, all that the program has started is killed, and
// no other program.
func TestAboveKilled(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			marker := fmt.Sprint(8_500_000_000 + int64(100*os.Getpid()+int(with)))
			script := "setsid sh -c 'setsid sleep " + marker + " & sleep " + marker + "' & sleep " + marker
			r := started(t, gateway(t, map[string]config.Action{"a": shell(script, time.Second),
				"b": shell("sleep 0.5", time.Minute)}))
			lab.Value(r.send(request{Job: job("a")}, nil))(t)
			<-r.events
			above := childrenOf(r.PID)
			lab.Value(r.send(request{Job: job("b")}, nil))(t)
			lab.Eventually(t, "the programs", func() bool { return len(running(marker)) >= 3 })
			lab.Must(t, syscall.Kill(above[0], with))
			want := map[uint64]string{2: Lost, 3: Ended}
			for len(want) > 0 {
				if n := <-r.events; n.event.over() && n.event.What != want[n.number] {
					t.Fatalf("got %d: %+v", n.number, n.event)
				} else if n.event.over() {
					delete(want, n.number)
				}
			}
			if left := running(marker); len(left) > 0 {
				t.Errorf("left running: %v", left)
			}
		})
	}
}

// TestDaemonGone: when the daemon ends, programs go on, and the runner ends after them.
func TestDaemonGone(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	a := shell("sleep 0.2; echo x; touch "+done, time.Minute)
	a.User = "root"
	r := started(t, gateway(t, map[string]config.Action{"a": a}))
	lab.Value(r.send(request{Job: job("a")}, nil))(t)
	<-r.events
	lab.Must(t, r.Conn.Close())
	lab.Eventually(t, "the end of the program", func() bool { _, err := os.Stat(done); return err == nil })
	<-r.Ended
}
