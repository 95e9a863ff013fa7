package firewall

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// kind is a backend as the tests set it up.
type kind struct {
	name     string
	programs string // of iptables: what they are links to; empty: nftables
	legacy   bool   // legacy iptables
}

// kinds returns all backends: the promises about access hold for each.
func kinds() []kind {
	return []kind{
		{name: "nftables"},
		{name: "iptables-nft", programs: "xtables-nft-multi"},
		{name: "iptables-legacy", programs: "xtables-legacy-multi", legacy: true},
	}
}

// everyBackend runs a test over each backend, some in parallel.
func everyBackend(t *testing.T, do func(*testing.T, kind)) {
	t.Helper()
	overKinds(t, kinds(), do)
}

// everyFamily runs a test over IPv4 and IPv6.
func everyFamily(t *testing.T, do func(*testing.T, sides)) {
	t.Helper()
	for _, f := range bothFamilies {
		t.Run(f.name, func(t *testing.T) { do(t, f) })
	}
}

// everywhere runs a test over each backend, and over IPv4 and IPv6 of each.
func everywhere(t *testing.T, do func(*testing.T, kind, sides)) {
	t.Helper()
	everyBackend(t, func(t *testing.T, k kind) {
		everyFamily(t, func(t *testing.T, f sides) { do(t, k, f) })
	})
}

// iptablesOnly runs a test over the kinds of iptables.
func iptablesOnly(t *testing.T, do func(*testing.T, kind)) {
	t.Helper()
	overKinds(t, kinds()[1:], do)
}

func overKinds(t *testing.T, ks []kind, do func(*testing.T, kind)) {
	t.Helper()
	for _, k := range ks {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			do(t, k)
		})
	}
}

// links makes a directory in which the programs of iptables are those of one kind, with a lock of their own, so that
// no test waits for another.
func links(t *testing.T, multi string) string {
	t.Helper()
	path := lab.NeedProgram(t, multi, "apt-get install iptables")
	dir := t.TempDir()
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore"} {
		for _, name := range []string{name, strings.Replace(name, "ip", "ip6", 1)} {
			fakeProgram(t, dir, name, "XTABLES_LOCKFILE="+filepath.Join(dir, "lock")+" exec "+path+" "+name+` "$@"`)
		}
	}
	return dir
}

// fakeProgram makes a program from a line of shell.
func fakeProgram(t *testing.T, dir, name, line string) {
	t.Helper()
	lab.Must(t, writeProgram(filepath.Join(dir, name), []byte("#!/bin/sh\n"+line+"\n")))
}

// writeProgram writes a file that can be run at once: if a process that another goroutine is starting still had it
// open for writing, the kernel would report that it is busy.
func writeProgram(path string, b []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, b, 0o755)
}

func (k kind) newSite(t *testing.T, change func(*Config)) *site {
	t.Helper()
	s := newSite(t, func(c *Config) {
		if k.programs != "" {
			c.Backend, c.programs = BackendIptables, links(t, k.programs)
			c.lock = filepath.Join(c.programs, "lock")
		}
		if change != nil {
			change(c)
		}
	})
	s.kind = k
	return s
}

func (k kind) guarded(t *testing.T, change func(*Config)) *site {
	t.Helper()
	s := k.newSite(t, change)
	s.open()
	s.load(0)
	return s
}

// lockWait is how many seconds a program of iptables waits for the lock.
const lockWait = "60"

// program runs one of the programs of iptables in the gateway, as another tool does.
func (s *site) program(name string, args ...string) string {
	s.Helper()
	cmd := exec.Command(filepath.Join(s.config.programs, name), args...)
	var out []byte
	err := s.gw.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		s.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
