package firewall

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// A decision is in the ledger before the kernel is changed, and if one of the two refuses it, it is in neither. So a
// process that is killed at any instruction leaves nothing open that the next one does not know of.

// kept is a guard with clocks that stand still and a ledger in a file.
type kept struct {
	*clocked
	dir string
}

const thisBoot = "this boot"

func newKept(t *testing.T) *kept {
	t.Helper()
	f := dry(t, 10)
	k := &kept{&clocked{T: t, Firewall: f, now: time.Now()}, t.TempDir()}
	f.cfg.Now = func() time.Time { return k.now }
	f.cfg.Guarded = []service.Ports{ports("tcp/1-1000")}
	f.ledger = k.reopen(10)
	k.kernel = record(f)
	lab.Must(t, k.Load(t.Context(), 0, k.now))
	return k
}

func (k *kept) reopen(slots int) *ledger.Ledger {
	k.Helper()
	l := lab.Value(ledger.Open(k.dir, thisBoot, slots))(k)
	k.Cleanup(func() { l.Close() })
	return l
}

// onDisk returns what a process that starts now would find: which client holds which port, and for how long.
func (k *kept) onDisk() map[string]time.Duration {
	k.Helper()
	hs := lab.Value(k.reopen(10).Read(k.now))(k)
	return k.lines(hs)
}

func (k *kept) inMemory() map[string]time.Duration {
	return k.lines(slices.Collect(k.held.All()))
}

func (k *kept) lines(hs []*ledger.Holding) map[string]time.Duration {
	found := make(map[string]time.Duration)
	for _, h := range hs {
		h.Each(func(e guard.Element) {
			if l := guard.Remaining(h.Until, k.now); l > 0 {
				found[fmt.Sprint(h.Client, " ", e.Proto, "/", e.Port)] = l.Round(time.Second)
			}
		})
	}
	return found
}

// inKernel returns which ports are open, and for how long.
func (k *kept) inKernel() map[string]time.Duration {
	found := make(map[string]time.Duration)
	for e, l := range k.kernel.lasts {
		found[fmt.Sprint(e.Proto, "/", e.Port)] = l.Round(time.Second)
	}
	return found
}

func portGrant(client string, last time.Time, ranges ...string) Grant {
	g := Grant{Client: client, Service: "some", Source: netip.MustParseAddr("192.0.2.2"), Until: last, Asked: last}
	for _, r := range ranges {
		g.Ports = append(g.Ports, ports(r))
	}
	return g
}

// decisions are all changes of grants. Before each, alice has ports 22 and 23 for a minute and bob has 22 for two.
var decisions = map[string]func(k *kept) error{
	"grant": func(k *kept) error {
		return k.Grant(k.Context(), []Grant{portGrant("carol", k.now.Add(time.Hour), "tcp/24")}, k.now)
	},
	"two grants": func(k *kept) error {
		return k.Grant(k.Context(), []Grant{
			portGrant("carol", k.now.Add(time.Hour), "tcp/24"), portGrant("dave", k.now.Add(time.Hour), "tcp/25"),
		}, k.now)
	},
	"refresh": func(k *kept) error {
		return k.Grant(k.Context(), []Grant{portGrant("alice", k.now.Add(time.Hour), "tcp/22-23")}, k.now)
	},
	"refresh and grant": func(k *kept) error {
		return k.Grant(k.Context(), []Grant{
			portGrant("alice", k.now.Add(time.Hour), "tcp/22-23"), portGrant("carol", k.now.Add(time.Hour), "tcp/24"),
		}, k.now)
	},
	"revoke": func(k *kept) error {
		_, err := k.Revoke(k.Context(), Match{}, k.now)
		return err
	},
	"revoke one of two": func(k *kept) error {
		_, err := k.Revoke(k.Context(), Match{Client: "bob"}, k.now)
		return err
	},
	"reconfigure": func(k *kept) error {
		c := k.cfg
		c.Guarded = []service.Ports{ports("tcp/23")}
		return k.Reconfigure(k.Context(), c, k.now)
	},
	"take back": func(k *kept) error {
		c := k.cfg
		c.Keep = func(g Grant) bool { return g.Client != "bob" }
		return k.Reconfigure(k.Context(), c, k.now)
	},
}

// outcomes are the grants after each decision: how many seconds each client then has each port.
var outcomes = map[string]map[string]time.Duration{
	"grant": {"alice tcp/22": 60, "alice tcp/23": 60, "bob tcp/22": 120, "carol tcp/24": 3600},
	"two grants": {"alice tcp/22": 60, "alice tcp/23": 60, "bob tcp/22": 120, "carol tcp/24": 3600,
		"dave tcp/25": 3600},
	"refresh":           {"alice tcp/22": 3600, "alice tcp/23": 3600, "bob tcp/22": 120},
	"refresh and grant": {"alice tcp/22": 3600, "alice tcp/23": 3600, "bob tcp/22": 120, "carol tcp/24": 3600},
	"revoke":            {},
	"revoke one of two": {"alice tcp/22": 60, "alice tcp/23": 60},
	"reconfigure":       {"alice tcp/23": 60},
	"take back":         {"alice tcp/22": 60, "alice tcp/23": 60},
}

func decided(t *testing.T) *kept {
	k := newKept(t)
	gs := []Grant{portGrant("alice", k.now.Add(time.Minute), "tcp/22-23"),
		portGrant("bob", k.now.Add(2*time.Minute), "tcp/22")}
	lab.Must(t, k.Grant(t.Context(), gs, k.now))
	return k
}

// agree checks that only ports in the file and in memory are open, and that these two agree.
func (k *kept) agree(when string) {
	k.Helper()
	disk, memory, kernel := k.onDisk(), k.inMemory(), k.inKernel()
	if !maps.Equal(disk, memory) {
		k.Errorf("%s the file has %v and memory %v", when, disk, memory)
	}
	for _, h := range lab.Value(k.reopen(10).Read(k.now))(k) {
		if held := k.held.Find(h.Key()); held != nil && !held.Asked.Equal(h.Asked) {
			k.Errorf("%s the file has a grant asked for at %v, and memory at %v", when, h.Asked, held.Asked)
		}
	}
	want := make(map[string]time.Duration)
	for line, l := range disk {
		var client, port string
		fmt.Sscan(line, &client, &port)
		want[port] = max(want[port], l)
	}
	if !maps.Equal(kernel, want) {
		k.Errorf("%s the kernel has %v open, want %v", when, kernel, want)
	}
}

// TestLedgerComesFirst: a grant that opens or is prolonged is in the file before the kernel is changed, and a revoked
// one is not.
func TestLedgerComesFirst(t *testing.T) {
	for name, decide := range decisions {
		t.Run(name, func(t *testing.T) {
			k := decided(t)
			told := 0
			k.kernel.told = func() {
				told++
				disk := k.onDisk()
				for port, l := range k.inKernel() {
					longest := time.Duration(0)
					for line, d := range disk {
						var client, held string
						fmt.Sscan(line, &client, &held)
						if held == port {
							longest = max(longest, d)
						}
					}
					if l != longest {
						t.Errorf("the kernel got %s for %v, but the file has it for %v", port, l, longest)
					}
				}
			}
			lab.Must(t, decide(k))
			if told == 0 {
				t.Error("the kernel was not changed")
			}
			k.agree("afterwards")
			want := make(map[string]time.Duration)
			for line, seconds := range outcomes[name] {
				want[line] = seconds * time.Second
			}
			if got := k.onDisk(); !maps.Equal(got, want) {
				t.Errorf("the file has %v, want %v", got, want)
			}
			k.passes(2*time.Hour, 0)
			if hs, err := k.reopen(10).Read(k.now); len(hs) != 0 || err != nil {
				t.Errorf("two hours later the file has %v, %v, want none", hs, err)
			}
		})
	}
}

// TestKernelRefuses: a change that the kernel refuses is not in the file, and existing grants stay.
func TestKernelRefuses(t *testing.T) {
	for name, decide := range decisions {
		t.Run(name, func(t *testing.T) {
			k := decided(t)
			before, free := k.inMemory(), spare(k.ledger)
			k.kernel.fails = errFailing
			if err := decide(k); !errors.Is(err, errFailing) {
				t.Fatalf("got %v, want %v", err, errFailing)
			}
			k.kernel.fails = nil
			k.unchanged(before, free)
		})
	}
}

// TestLedgerRefuses: a change that the ledger refuses does not reach the kernel, and records written before the
// failure are undone.
func TestLedgerRefuses(t *testing.T) {
	for name, decide := range decisions {
		for nth := range 4 {
			t.Run(fmt.Sprintf("%s, write %d", name, nth+1), func(t *testing.T) {
				k := decided(t)
				before, free := k.inMemory(), spare(k.ledger)
				told := 0
				k.kernel.told = func() { told++ }
				file := &failingFile{WriterAt: k.ledger.Records, at: nth}
				k.ledger.Records = file
				err := decide(k)
				if file.at >= 0 {
					return // it makes fewer writes
				}
				if !errors.Is(err, errFailing) {
					t.Fatalf("got %v, want %v", err, errFailing)
				}
				if told > 0 {
					t.Error("the kernel was changed")
				}
				k.unchanged(before, free)
			})
		}
	}
}

// failingFile fails once.
type failingFile struct {
	io.WriterAt
	at int // after so many writes
}

func (f *failingFile) WriteAt(b []byte, offset int64) (int, error) {
	f.at--
	if f.at == -1 {
		return 0, errFailing
	}
	return f.WriterAt.WriteAt(b, offset)
}

func (k *kept) unchanged(before map[string]time.Duration, free int) {
	k.Helper()
	if after := k.inMemory(); !maps.Equal(after, before) {
		k.Errorf("memory has %v, want what it had: %v", after, before)
	}
	if spare(k.ledger) != free {
		k.Errorf("%d slots are free, want %d as before", spare(k.ledger), free)
	}
	k.agree("after the fault")
	for name, again := range decisions { // no trace of the failure interferes later
		if name == "two grants" {
			if err := again(k); err != nil {
				k.Error(err)
			}
			k.agree("later")
		}
	}
}

// TestEndedStaysEnded: a grant that ended by the wall clock does not become live again when that clock is set back,
// whether the server that ended it is still running or another one starts.
func TestEndedStaysEnded(t *testing.T) {
	for name, end := range map[string]func(k *kept){
		"while the server runs": func(k *kept) {
			for k.endDue(k.now) {
			}
		},
		"at a start": func(k *kept) { k.onDisk() },
	} {
		t.Run(name, func(t *testing.T) {
			k := decided(t)
			before := k.now
			k.now = before.Add(100 * time.Hour)
			end(k)
			k.now = before
			if held := k.onDisk(); len(held) != 0 {
				t.Errorf("after the clock was set back, a start restores %v", held)
			}
		})
	}
}
