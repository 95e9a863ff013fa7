package firewall

import (
	"os/exec"
	"slices"
	"testing"

	"sallyport/firewall/internal/iptables"
	"sallyport/spa/lab"
)

// TestLegacyTablesAreRead: the kernel's format differs between processors. A chain of ours is found; a counted packet
// is not a change, a rule is.
func TestLegacyTablesAreRead(t *testing.T) {
	lab.NeedRoot(t)
	multi := lab.NeedProgram(t, "xtables-legacy-multi", "apt-get install iptables")
	s := newSite(t, nil)
	rule := func(program string, args ...string) {
		t.Helper()
		out, err := s.runs(multi, append([]string{program, "-w", lockWait, "-t", "mangle"}, args...)...)
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", program, args, err, out)
		}
	}
	left := func() (kinds []string) {
		t.Helper()
		s.must(s.gw.Do(func() (err error) { kinds, err = iptables.Leftover(); return err }))
		return kinds
	}
	for _, f := range []struct{ program, from, to string }{{"iptables", "192.0.2.2", "192.0.2.1"},
		{"ip6tables", "2001:db8::2", "2001:db8::1"}} {
		rule(f.program, "-A", "PREROUTING", "-m", "comment", "--comment", "another's")
		if got := left(); len(got) != 0 {
			t.Errorf("%s: got %q without a chain of ours", f.program, got)
		}
		rule(f.program, "-N", iptables.ChainGuard)
		if got := left(); !slices.Equal(got, []string{iptables.KindLegacy}) {
			t.Errorf("%s: got %q, want a guard of iptables-legacy", f.program, got)
		}
		var l *iptables.LegacyTables
		s.must(s.gw.Do(func() (err error) { l, err = iptables.OpenLegacyTables(false); return err }))
		sum := func() [32]byte {
			t.Helper()
			h := lab.Value(l.Sum(false))(s)
			return h
		}
		before := sum()
		s.connect(f.from, f.to, "22")
		if sum() != before {
			t.Errorf("%s: packets changed the sum of the rules", f.program)
		}
		rule(f.program, "-A", iptables.ChainGuard, "-j", "RETURN")
		if sum() == before {
			t.Errorf("%s: a rule did not change the sum of the rules", f.program)
		}
		s.must(l.Close())
		rule(f.program, "-F", iptables.ChainGuard)
		rule(f.program, "-X", iptables.ChainGuard)
	}
}

// runs runs a program in the gateway, with a lock of its own.
func (s *site) runs(program string, args ...string) (out []byte, err error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(cmd.Environ(), "XTABLES_LOCKFILE="+s.config.State+"/lock")
	err = s.gw.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	return out, err
}
