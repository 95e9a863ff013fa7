package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/iptables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// kindNamed returns one of kinds.
func kindNamed(t *testing.T, name string) kind {
	t.Helper()
	for _, k := range kinds() {
		if k.name == name {
			return k
		}
	}
	t.Fatalf("there is no kind %q", name)
	return kind{}
}

// fails returns the error of opening a Firewall.
func (s *site) fails() string {
	s.Helper()
	err := s.gw.Do(func() error {
		f, err := New(s.config, slog.New(slog.DiscardHandler))
		if err == nil {
			f.Close()
		}
		return err
	})
	if err == nil {
		s.Fatal("got no error")
	}
	return err.Error()
}

func (s *site) says(said string, words ...string) {
	s.Helper()
	for _, word := range words {
		if !strings.Contains(said, word) {
			s.Errorf("got %q, want %q in it", said, word)
		}
	}
}

// TestIptablesPutBack: whatever another tool does to our chains or in front of them is repaired.
func TestIptablesPutBack(t *testing.T) {
	const first = "-I PREROUTING 1 -s 192.0.2.0/24 -j ACCEPT"
	for name, does := range map[string][]string{
		"mangle flushed":                      {"-F"},
		"our chain emptied":                   {"-F spa-door"},
		"our chain removed":                   {"-F PREROUTING", "-F OUTPUT", "-F", "-X"},
		"a rule before ours":                  {first},
		"a rule put first in our chain":       {"-I spa-here 1 -j RETURN"},
		"a rule of ours deleted":              {"-D spa-entry -j DROP"},
		"the jump deleted":                    {"-D PREROUTING 1"},
		"the jump deleted, another rule left": {"-D PREROUTING 1", "-A PREROUTING -j ACCEPT"},
	} {
		t.Run(name, func(t *testing.T) {
			iptablesOnly(t, func(t *testing.T, k kind) {
				s := k.guarded(t, nil)
				atOnce := len(does) < 4
				if atOnce { // otherwise the put-back would interfere with the remaining changes
					s.watch()
				}
				s.grant("alice", "192.0.2.2", long)
				session := s.connect("192.0.2.2", "192.0.2.1", "22")
				for _, args := range does {
					for _, program := range []string{"iptables", "ip6tables"} {
						if program == "ip6tables" {
							args = strings.ReplaceAll(args, "192.0.2.0/24", "2001:db8::/32")
						}
						s.program(program, append([]string{"-w", lockWait, "-t", "mangle"}, strings.Fields(args)...)...)
					}
				}
				if !atOnce {
					s.watch()
				}
				for _, f := range bothFamilies {
					lab.Eventually(t, "darkness", func() bool { return !s.isOpen(f.stranger, f.gateway, "22") })
				}
				s.connect("192.0.2.2", "192.0.2.1", "22")
				s.echoes(session)
			})
		})
	}
}

// TestEmptiedSets: the kernel does not report changes of ipsets, but Watch notices them.
func TestEmptiedSets(t *testing.T) {
	for _, name := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(name, func(t *testing.T) {
			s := kindNamed(t, name).guarded(t, nil)
			s.watch()
			s.grant("alice", "192.0.2.2", long)
			b := s.backend.(*iptables.Backend)
			s.must(b.Sets.Replace(b.AddressSet(iptables.SetGrants, ipset.HashIPPort, false), nil))
			lab.Eventually(t, "the grant", func() bool { return s.isOpen("192.0.2.2", "192.0.2.1", "22") })
			s.dark("192.0.2.3", "192.0.2.1", "22")
		})
	}
}

// TestOthersRulesStay: rules of other tools in the same tables are not touched, and their changes cause no put-backs.
func TestOthersRulesStay(t *testing.T) {
	iptablesOnly(t, func(t *testing.T, k kind) {
		s := k.newSite(t, nil)
		s.program("iptables", "-t", "mangle", "-N", "theirs")
		s.program("iptables", "-t", "mangle", "-A", "PREROUTING", "-j", "theirs")
		s.program("iptables", "-t", "mangle", "-A", "theirs", "-p", "tcp", "--dport", "22", "-j", "MARK", "--set-mark", "7")
		before := s.program("iptables", "-t", "mangle", "-S", "theirs")
		s.open()
		n := s.counts("put back")
		s.load(0)
		stop := s.watchUntil()
		s.program("iptables", "-w", lockWait, "-t", "mangle", "-A", "theirs", "-j", "RETURN")
		s.program("iptables", "-w", lockWait, "-t", "mangle", "-D", "theirs", "-j", "RETURN")
		s.grant("alice", "192.0.2.2", long)
		s.connect("192.0.2.2", "192.0.2.1", "22")
		stop()
		counted := s.program("iptables", "-w", lockWait, "-t", "mangle", "-vnxL", "theirs")
		if strings.Contains(counted, "     0        0 MARK") {
			t.Errorf("packets that the guard let in did not reach another tool's rules:\n%s", counted)
		}
		s.must(s.gw.Do(func() error { return s.Firewall.backend.Remove() }))
		if after := s.program("iptables", "-t", "mangle", "-S", "theirs"); after != before {
			t.Errorf("got %q, want %q", after, before)
		}
		if left := s.program("iptables-save"); strings.Contains(left, "spa-") {
			t.Errorf("rules of ours are left:\n%s", left)
		}
		if got := n.Load(); got != 0 {
			t.Errorf("the guard was put back %d times", got)
		}
	})
}

// TestForeignChain: chains with our names that are not ours are left alone.
func TestForeignChain(t *testing.T) {
	for _, name := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(name, func(t *testing.T) {
			s := kindNamed(t, name).newSite(t, nil)
			s.program("iptables", "-t", "mangle", "-N", iptables.ChainGuard)
			s.program("iptables", "-t", "mangle", "-A", iptables.ChainGuard, "-p", "icmp", "-j", "RETURN")
			s.open()
			err := s.gw.Do(func() error { return s.Load(t.Context(), 0, time.Now()) })
			if !errors.Is(err, ErrForeign) {
				t.Errorf("got %v, want ErrForeign", err)
			}
			s.says(s.program("iptables", "-t", "mangle", "-S", iptables.ChainGuard), "-p icmp")
		})
	}
}

// TestForeignSet: so are sets, whether they hold grants or what rules put into them.
func TestForeignSet(t *testing.T) {
	for _, set := range []ipset.Set{
		{Name: "spa-grants4", Kind: ipset.BitmapPort, Family: unix.AF_INET, Low: 1, High: 9},
		{Name: iptables.SetName(iptables.SetMet, false), Kind: ipset.BitmapPort, Low: 1, High: 9},
	} {
		t.Run(set.Name, func(t *testing.T) {
			s := kindNamed(t, "iptables-nft").newSite(t, nil)
			s.must(s.gw.Do(func() error {
				sets, err := ipset.Open()
				if err != nil {
					return err
				}
				defer sets.Close()
				return sets.Create(set)
			}))
			s.open()
			err := s.gw.Do(func() error { return s.Load(t.Context(), 0, time.Now()) })
			if !errors.Is(err, ipset.ErrForeign) {
				t.Errorf("got %v, want the error that the set is not ours", err)
			}
		})
	}
}

// TestProgramsThatWillNotDo: each unusable program has an error that says what to do.
func TestProgramsThatWillNotDo(t *testing.T) {
	nft := kindNamed(t, "iptables-nft")
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  []string
	}{
		{"none", func(t *testing.T, dir string) {
			for _, name := range []string{"iptables", "ip6tables"} {
				os.Remove(filepath.Join(dir, name))
			}
		}, []string{"no program iptables", "install"}},
		{"none for IPv6", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "ip6tables")) },
			[]string{"no program ip6tables", "open over IPv6"}},
		{"no restore", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "iptables-restore")) },
			[]string{"no program iptables-restore"}},
		{"mixed kinds", func(t *testing.T, dir string) {
			fakeProgram(t, dir, "ip6tables-restore", "echo 'ip6tables-restore v1.8.9 (legacy)'")
		}, []string{"iptables is nf_tables", "ip6tables-restore is legacy", "update-alternatives"}},
		{"an unknown kind", func(t *testing.T, dir string) {
			for _, name := range []string{"iptables", "iptables-save", "iptables-restore"} {
				fakeProgram(t, dir, name, "echo 'iptables v1.9.0 (novel)'")
				fakeProgram(t, dir, strings.Replace(name, "ip", "ip6", 1), "echo 'iptables v1.9.0 (novel)'")
			}
		}, []string{"novel", "unknown kind"}},
		{"too old", func(t *testing.T, dir string) { fakeProgram(t, dir, "iptables", "echo 'iptables v1.4.7'") },
			[]string{"1.4.7", "1.6.2"}},
		{"no version", func(t *testing.T, dir string) { fakeProgram(t, dir, "iptables", "exit 3") },
			[]string{"iptables does not work"}},
		{"rules are refused", func(t *testing.T, dir string) {
			fakeProgram(t, dir, "iptables-restore", `[ "$1" = --version ] && `+
				`echo 'iptables-restore v1.8.9 (nf_tables)' || { echo "no such match" >&2; exit 2; }`)
		}, []string{"lacks", "no such match"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := nft.newSite(t, nil)
			test.spoil(t, s.config.programs)
			s.says(s.fails(), append(test.want, "iptables")...)
		})
	}
}

// TestWithoutSets: if rules cannot match sets, the start is refused with an error that says what to install.
func TestWithoutSets(t *testing.T) {
	s := kindNamed(t, "iptables-nft").newSite(t, nil)
	for _, name := range []string{"iptables-restore", "ip6tables-restore"} {
		path := filepath.Join(s.config.programs, name)
		s.must(os.Rename(path, path+"-real"))
		fakeProgram(t, s.config.programs, name,
			`in=$(/bin/cat); case "$in" in *match-set*) echo "Couldn't load match set" >&2; exit 2;; esac; printf '%s\n' `+
				`"$in" | `+path+`-real "$@"`)
	}
	s.says(s.fails(), "without ipset", "install", "CONFIG_IP_SET", "libxt_set", "Couldn't load match set")
	s.must(s.gw.Do(func() error {
		sets, err := ipset.Open()
		if err != nil {
			return err
		}
		defer sets.Close()
		if _, err := sets.List(iptables.SetName(iptables.SetProbe, false)); !errors.Is(err, guard.ErrGone) {
			t.Errorf("got %v, want the probed set gone", err)
		}
		return nil
	}))
}

// TestWhatIptablesCannot: settings that iptables does not support are refused at the start.
func TestWhatIptablesCannot(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		{"reject", func(c *Config) { c.Closed = Reject }, []string{`closed = "drop"`}},
		{"admit", func(c *Config) { c.Mode = Admit }, []string{"admit", "nftables"}},
		{"interface", func(c *Config) { c.Trusted = []string{"eth+"} }, []string{`"eth+"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := kindNamed(t, "iptables-nft").newSite(t, test.change)
			s.says(s.fails(), test.want...)
		})
	}
}

// TestAutoFallsBack: without nftables, auto selects iptables and reports it.
func TestAutoFallsBack(t *testing.T) {
	s := kindNamed(t, "iptables-nft").newSite(t, nil)
	s.config.setDefaults()
	var chosen string
	s.must(s.gw.Do(func() error {
		b, why, err := insteadOfNftables(errors.New("it is not there"), s.config.spec(), slog.New(slog.DiscardHandler))
		chosen = why
		if err != nil {
			return err
		}
		return b.Close()
	}))
	s.says(chosen, "it is not there")
	_, _, err := insteadOfNftables(unix.EPERM, s.config.spec(), nil)
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v, want the error that the privilege is missing", err)
	}
	s.config.Closed = Reject
	_, _, err = insteadOfNftables(errors.New("it is not there"), s.config.spec(), nil)
	s.says(err.Error(), "it is not there", "iptables cannot be used either")
}

// TestAutoSaysWhich: auto reports which backend it selected, and why.
func TestAutoSaysWhich(t *testing.T) {
	s := newSite(t, nil)
	s.open()
	s.says(s.Describe(), "nftables", "chosen automatically")
	if got := s.BackendName(); got != BackendNftables {
		t.Errorf("got %q, want %q", got, BackendNftables)
	}
}

// TestSwitchOfBackend: with both guards in place a grant would open nothing.
func TestSwitchOfBackend(t *testing.T) {
	for _, name := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(name, func(t *testing.T) {
			k := kindNamed(t, name)
			s := k.guarded(t, func(c *Config) { c.plain = name == "iptables-nft" }) // otherwise with an owner
			s.Cleanup(s.endKeepers)
			s.grant("alice", "192.0.2.2", long)
			for i, backend := range []string{BackendNftables, BackendIptables, BackendNftables} {
				fresh := fmt.Sprintf("192.0.2.%d", 4+i)
				s.config.Backend = backend
				s.open()
				s.load(0)
				if got := s.BackendName(); got != backend {
					t.Fatalf("got %q, want %q", got, backend)
				}
				s.connect("192.0.2.2", "192.0.2.1", "22")
				s.dark("192.0.2.3", "192.0.2.1", "22")
				s.revoke(Match{})
				s.dark("192.0.2.2", "192.0.2.1", "22")
				s.grant("alice", fresh, long) // the other backend does not have it
				s.connect(fresh, "192.0.2.1", "22")
				s.grant("alice", "192.0.2.2", long)
			}
		})
	}
}

// TestRulesThatAreNone: the helper checks everything in a request.
func TestRulesThatAreNone(t *testing.T) {
	good := iptables.GuardRules{Mark: DefaultMark, Guarded: []service.Ports{ports("tcp/22")}}
	lab.Must(t, good.Check())
	a4, a6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	for name, spoil := range map[string]func(*iptables.GuardRules){
		"mark":          func(r *iptables.GuardRules) { r.Mark = 3 },
		"protocol":      func(r *iptables.GuardRules) { r.Guarded[0].Proto = 1 },
		"cut ports":     func(r *iptables.GuardRules) { r.Cut = []service.Ports{{Proto: service.TCP, Low: 2, High: 1}} },
		"new line":      func(r *iptables.GuardRules) { r.Trusted = []string{"lo\n-A x"} },
		"space":         func(r *iptables.GuardRules) { r.Trusted = []string{"lo -j"} },
		"option":        func(r *iptables.GuardRules) { r.Trusted = []string{"-j"} },
		"any interface": func(r *iptables.GuardRules) { r.Trusted = []string{"e+"} },
		"no address":    func(r *iptables.GuardRules) { r.Targets = []Target{{Addresses: []netip.Addr{{}}}} },
		"zone": func(r *iptables.GuardRules) {
			r.Targets = []Target{{Addresses: []netip.Addr{a6.WithZone("x\n-A y")}}}
		},
		"mapped": func(r *iptables.GuardRules) {
			r.Targets = []Target{{Addresses: []netip.Addr{netip.AddrFrom16(a4.As16())}}}
		},
	} {
		bad := good
		bad.Guarded = []service.Ports{ports("tcp/22")}
		spoil(&bad)
		if err := bad.Check(); err == nil {
			t.Errorf("%s: got no error", name)
		}
		p := &iptables.Programs{}
		if answer := p.Do(&iptables.Request{Op: iptables.OpLoad, Rules: bad}); answer.Outcome != iptables.Failed {
			t.Errorf("%s: the helper did it", name)
		}
	}
	if answer := (&iptables.Programs{}).Do(&iptables.Request{Op: 99, Rules: good}); answer.Outcome != iptables.Failed {
		t.Error("the helper did an unknown operation")
	}
}
