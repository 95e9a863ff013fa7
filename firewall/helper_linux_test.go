package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/iptables"
	"sallyport/spa/lab"
)

// helperPID returns the process that runs iptables for this one.
func (s *site) helperPID() int {
	s.Helper()
	paths := lab.Value(filepath.Glob("/proc/[0-9]*/cmdline"))(s)
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(line), iptables.HelperName+"\x00") ||
			!strings.Contains(string(line), s.config.programs) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err == nil {
			return pid
		}
	}
	s.Fatal("there is no helper")
	return 0
}

// TestHelperHasLittle: the helper can change rules and start programs, and nothing else.
func TestHelperHasLittle(t *testing.T) {
	s := kindNamed(t, "iptables-nft").guarded(t, nil)
	pid := s.helperPID()
	status := lab.Value(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(s)
	const keeps = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	for _, field := range []string{"CapPrm", "CapEff", "CapBnd"} {
		if want := fmt.Sprintf("%s:\t%016x", field, keeps); !strings.Contains(string(status), want) {
			t.Errorf("the helper's status has no %q:\n%s", want, status)
		}
	}
	if !strings.Contains(string(status), "NoNewPrivs:\t1") {
		t.Error("the helper may gain privileges")
	}
	group := lab.Value(unix.Getpgid(pid))(s)
	if group == unix.Getpgrp() {
		t.Error("the helper is in the daemon's process group: keys typed at a terminal end it")
	}
	s.must(unix.Kill(pid, unix.SIGTERM)) // like a service manager that stops all processes
	s.must(unix.Kill(pid, unix.SIGINT))
	s.must(s.gw.Do(func() error { return s.putBack(time.Now()) }))
}

// TestHelperEndsWithTheDaemon: no helper is left behind.
func TestHelperEndsWithTheDaemon(t *testing.T) {
	s := kindNamed(t, "iptables-nft").guarded(t, nil)
	pid := s.helperPID()
	s.die()
	lab.Eventually(t, "the end of the process", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
}

// TestHelperKilled: the ports stay shut, grants continue, and Watch reports what happened.
func TestHelperKilled(t *testing.T) {
	for _, name := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(name, func(t *testing.T) {
			s := kindNamed(t, name).guarded(t, nil)
			s.grant("bob", "192.0.2.4", long)
			ended := s.watch()
			s.must(unix.Kill(s.helperPID(), unix.SIGKILL))
			s.ends(ended, iptables.ErrHelper)
			s.dark("192.0.2.3", "192.0.2.1", "22")
			s.connect("192.0.2.4", "192.0.2.1", "22")
			s.grant("alice", "192.0.2.2", long)
			s.connect("192.0.2.2", "192.0.2.1", "22")
			err := s.gw.Do(func() error { return s.Load(t.Context(), 0, time.Now()) })
			if !errors.Is(err, iptables.ErrHelper) {
				t.Errorf("got %v, want %v", err, iptables.ErrHelper)
			}
			s.says(fmt.Sprint(err), "killed", "restart spa-server")
			s.open() // as a service manager does
			s.load(0)
			s.connect("192.0.2.2", "192.0.2.1", "22")
			s.dark("192.0.2.3", "192.0.2.1", "22")
		})
	}
}

// TestHelperHangs: a helper that does not reply is given up after a while.
func TestHelperHangs(t *testing.T) {
	s := kindNamed(t, "iptables-nft").guarded(t, nil)
	pid := s.helperPID()
	s.backend.(*iptables.Backend).Helper.Patience = time.Second
	ended := s.watch()
	s.must(unix.Kill(pid, unix.SIGSTOP))
	t.Cleanup(func() { unix.Kill(pid, unix.SIGKILL) })
	s.grant("alice", "192.0.2.2", long)
	s.connect("192.0.2.2", "192.0.2.1", "22")
	s.program("iptables", "-t", "mangle", "-A", "POSTROUTING", "-j", "RETURN") // a change to inspect
	s.ends(ended, iptables.ErrHelper)
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

// TestProgramHangs: a program that hangs is killed after a while; the helper lives on.
func TestProgramHangs(t *testing.T) {
	t.Parallel()
	s := kindNamed(t, "iptables-nft").newSite(t, nil)
	s.open()
	path := filepath.Join(s.config.programs, "iptables-restore")
	s.must(os.Rename(path, path+"-real"))
	fakeProgram(t, s.config.programs, "iptables-restore", "exec /bin/sleep 600")
	err := s.gw.Do(func() error { return s.Load(t.Context(), 0, time.Now()) })
	s.says(fmt.Sprint(err), "iptables-restore was killed after", "in state S", "of CPU time")
	s.must(os.Rename(path+"-real", path))
	s.load(0)
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

// TestProgramHangsOnce: an existing guard is loaded anyway, and stays in place throughout, whether the program hung
// before it changed anything or after.
func TestProgramHangsOnce(t *testing.T) {
	for i, when := range []string{"before", "after"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			s := kindNamed(t, "iptables-nft").guarded(t, nil)
			s.grant("alice", "192.0.2.2", long)
			path, trouble := filepath.Join(s.config.programs, "ip6tables-restore"), filepath.Join(t.TempDir(), "trouble")
			s.must(os.Rename(path, path+"-real"))
			s.must(os.WriteFile(trouble, nil, 0o644))
			hangs := fmt.Sprintf("/bin/sleep 600.%d%d", os.Getpid(), i) // recognizable by its argument
			first := map[string]string{"before": "", "after": path + `-real "$@"; `}[when]
			fakeProgram(t, s.config.programs, "ip6tables-restore",
				"[ -e "+trouble+" ] && { "+first+"exec "+hangs+"; }; exec "+path+`-real "$@"`)
			loaded := make(chan error, 1)
			go func() { loaded <- s.gw.Do(func() error { return s.Load(t.Context(), 0, time.Now()) }) }()
			lab.Eventually(t, "the program to hang", func() bool { return isRun(hangs) })
			s.must(os.Remove(trouble))
			s.dark("192.0.2.3", "192.0.2.1", "22")
			s.must(<-loaded)
			s.connect("192.0.2.2", "192.0.2.1", "22")
			s.dark("192.0.2.3", "192.0.2.1", "22")
		})
	}
}

// isRun reports whether a command is running.
func isRun(command string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	return slices.ContainsFunc(all, func(name string) bool {
		b, _ := os.ReadFile(name)
		return strings.Join(strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"), " ") == command
	})
}

// TestProgramIsSlow: a machine that takes seconds to load modules is guarded too.
func TestProgramIsSlow(t *testing.T) {
	t.Parallel()
	s := kindNamed(t, "iptables-nft").newSite(t, nil)
	s.open()
	path := filepath.Join(s.config.programs, "iptables-restore")
	s.must(os.Rename(path, path+"-real"))
	fakeProgram(t, s.config.programs, "iptables-restore", "/bin/sleep 5; exec "+path+`-real "$@"`)
	s.load(0)
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

// TestProgramFails: a program that fails for a while. Watch continues, logs it, and tries again.
func TestProgramFails(t *testing.T) {
	for _, name := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(name, func(t *testing.T) {
			s := kindNamed(t, name).newSite(t, nil)
			path, trouble := filepath.Join(s.config.programs, "iptables-save"), filepath.Join(t.TempDir(), "trouble")
			s.must(os.Rename(path, path+"-real"))
			fakeProgram(t, s.config.programs, "iptables-save", "[ -e "+trouble+" ] && exit 1; exec "+path+`-real "$@"`)
			s.open()
			s.load(0)
			n := s.counts("could not be put back")
			s.watch()
			s.must(os.WriteFile(trouble, nil, 0o600))
			s.program("iptables", "-w", lockWait, "-t", "mangle", "-F")
			lab.Eventually(t, "the complaint", func() bool { return n.Load() == 1 })
			s.must(os.Remove(trouble))
			lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
		})
	}
}

// hold takes the lock of iptables, like a tool that is working.
func (s *site) hold() (release func()) {
	s.Helper()
	f := lab.Value(os.OpenFile(filepath.Join(s.config.programs, "lock"), os.O_RDWR|os.O_CREATE, 0o600))(s)
	s.must(unix.Flock(int(f.Fd()), unix.LOCK_EX))
	s.Cleanup(func() { f.Close() })
	return func() { f.Close() }
}

// TestLockHeld: grants continue, and what needs the lock is done once it is free.
func TestLockHeld(t *testing.T) {
	for _, name := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(name, func(t *testing.T) {
			k := kindNamed(t, name)
			s := k.guarded(t, nil)
			s.grant("bob", "192.0.2.4", long)
			s.watch()
			release := s.hold()
			done := make(chan error, 1)
			started := s.notes("iptables-restore")
			go func() {
				for i := range 20 {
					g := sshGrant("alice", fmt.Sprintf("192.0.2.%d", 20+i), long)
					if err := s.Grant(t.Context(), []Grant{g}, time.Now()); err != nil {
						done <- err
						return
					}
				}
				done <- s.Grant(t.Context(), []Grant{sshGrant("alice", "192.0.2.2", long)}, time.Now())
			}()
			late := time.NewTimer(lab.Patience)
			defer late.Stop()
			select {
			case err := <-done:
				s.must(err)
			case <-late.C:
				t.Fatal("grants wait for the lock")
			}
			s.connect("192.0.2.4", "192.0.2.1", "22")
			s.dark("192.0.2.3", "192.0.2.1", "22")
			s.connect("192.0.2.2", "192.0.2.1", "22")
			if k.legacy && started() { // iptables-nft has no lock
				t.Error("a program was started, which waits for the lock")
			}
			release()
			lab.Eventually(t, "the grant", func() bool { return s.isOpen("192.0.2.2", "192.0.2.1", "22") })
			s.load(0)
			if k.legacy && !started() {
				t.Error("the guard was loaded, but no start of a program was seen")
			}
		})
	}
}

// notes returns a function that reports whether a program was started since: it writes to the lock, the only file
// that it may write.
func (s *site) notes(program string) (started func() bool) {
	s.Helper()
	path, mark := filepath.Join(s.config.programs, program), s.config.lock
	s.must(os.Rename(path, path+"-real"))
	fakeProgram(s.T, s.config.programs, program, "echo started >>"+mark+"; exec "+path+`-real "$@"`)
	return func() bool {
		info, err := os.Stat(mark)
		return err == nil && info.Size() > 0
	}
}

// flushUnlocked empties a table like a tool that ignores the lock.
func (s *site) flushUnlocked() {
	s.Helper()
	cmd := exec.Command(lab.NeedProgram(s, s.kind.programs, "apt-get install iptables"), "iptables", "-t", "mangle", "-F")
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(s.T.TempDir(), "lock"))
	s.must(s.gw.Start(cmd))
	s.must(cmd.Wait())
}

// TestPutBackWaitsForTheLock: the put-back waits for the lock, but nothing waits for the put-back.
func TestPutBackWaitsForTheLock(t *testing.T) {
	s := kindNamed(t, "iptables-legacy").guarded(t, nil)
	n := s.counts("could not be put back")
	s.watch()
	release := s.hold()
	s.flushUnlocked()
	lab.Eventually(t, "the complaint", func() bool { return n.Load() == 1 })
	s.grant("alice", "192.0.2.2", long)
	release()
	lab.Eventually(t, "darkness", func() bool { return !s.isOpen("192.0.2.3", "192.0.2.1", "22") })
	s.connect("192.0.2.2", "192.0.2.1", "22")
}

// TestStartWaitsForTheLock: a start waits for the lock for a while.
func TestStartWaitsForTheLock(t *testing.T) {
	s := kindNamed(t, "iptables-legacy").newSite(t, nil)
	s.open()
	release := s.hold()
	free := time.AfterFunc(1500*time.Millisecond, release)
	defer free.Stop()
	s.load(0)
	s.dark("192.0.2.3", "192.0.2.1", "22")
}

// TestThousandGrants: they are listed after a kill and a new start, and one of them ends while no daemon runs.
func TestThousandGrants(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.guarded(t, func(c *Config) { c.slots = 2000 })
		gs := make([]Grant, 1000)
		for i := range gs {
			gs[i] = sshGrant(fmt.Sprintf("c%d", i), "192.0.2.2", long)
			gs[i].Source = netip.AddrFrom4([4]byte{198, 51, byte(100 + i/250), byte(1 + i%250)})
			if i == 999 {
				gs[i].Source = netip.MustParseAddr("192.0.2.2")
			}
		}
		for start := 0; start < len(gs); start += 100 {
			s.must(s.Grant(t.Context(), gs[start:start+100], time.Now()))
		}
		s.connect("192.0.2.2", "192.0.2.1", "22")
		s.open() // as after kill -9
		s.load(0)
		if got := s.Grants(time.Now()); len(got) != 1000 {
			t.Errorf("got %d grants after a new start, want 1000", len(got))
		}
		s.connect("192.0.2.2", "192.0.2.1", "22")
		s.shorten(Match{Client: "c999"}, time.Second)
		s.die()
		lab.Eventually(t, "the end of one", func() bool { return !s.isOpen("192.0.2.2", "192.0.2.1", "22") })
		s.dark("192.0.2.3", "192.0.2.1", "22")
	})
}

// TestHelperIsNoProgram: started by hand, the helper does nothing.
func TestHelperIsNoProgram(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{iptables.HelperName, iptables.HelperArg, "/nowhere", "", ""}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).ExitStatus() != 1 ||
		!strings.Contains(string(out), "only spa-server") {
		t.Errorf("got %v and %q, want exit 1 and the reason", err, out)
	}
}
