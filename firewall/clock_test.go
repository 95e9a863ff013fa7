package firewall

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// recording is a backend that records its calls, and the time left of each element at the call.
type recording struct {
	*dryRun
	now   func() time.Time
	lasts map[guard.Element]time.Duration // time left of each element when it was set
	most  int                             // most elements that one batch deleted
	told  func()                          // called after each batch; nil: nothing
	fails error                           // the error of each batch
	loads func() error                    // the result of a load; nil: as of each batch

	elements int // number of elements set
}

func record(f *Firewall) *recording {
	r := &recording{dryRun: newDryRun(f.log), now: func() time.Time { return f.cfg.Now() },
		lasts: make(map[guard.Element]time.Duration)}
	f.backend = r
	return r
}

func (r *recording) Set(ls []guard.Lease) error {
	if r.fails != nil {
		return r.fails
	}
	gone := 0
	r.elements += len(ls)
	for _, l := range guard.Timed(ls, r.now()) {
		if l.Remaining <= 0 {
			delete(r.lasts, l.Element)
			gone++
			continue
		}
		r.lasts[l.Element] = l.Remaining
	}
	r.most = max(r.most, gone)
	if r.told != nil {
		r.told()
	}
	return nil
}

func (r *recording) Load(_ guard.Spec, p guard.Plan) error {
	if r.loads != nil {
		if err := r.loads(); err != nil {
			return err
		}
	}
	if r.fails != nil {
		return r.fails
	}
	clear(r.lasts)
	return r.Set(p.At(r.now()).Leases)
}

// clocked is a guard whose clocks stand still until they are set.
type clocked struct {
	*testing.T
	*Firewall
	kernel *recording
	now    time.Time
}

func newClocked(t *testing.T) *clocked {
	c := &clocked{T: t, Firewall: dry(t, 10), now: time.Now()}
	c.cfg.Now = func() time.Time { return c.now }
	c.kernel = record(c.Firewall)
	lab.Must(t, c.Load(t.Context(), 0, c.now))
	return c
}

// wakes does what Watch does when its alarm goes off.
func (c *clocked) wakes() {
	for c.endDue(c.now) {
	}
}

// passes advances the monotonic clock by d, and the wall clock by ahead more.
func (c *clocked) passes(d, ahead time.Duration) { c.now = lab.SetClock(c.T, c.now.Add(d), ahead) }

// grants gives a client tcp/22 and the ports after it. The end may lack a monotonic reading.
func (c *clocked) grants(client string, n uint16, lasts time.Duration) Grant {
	c.Helper()
	g := Grant{
		Client: client, Source: netip.MustParseAddr("192.0.2.2"),
		Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 21 + n}},
		Until: c.now.Add(lasts).Round(0),
	}
	lab.Must(c, c.Grant(c.Context(), []Grant{g}, c.now))
	return g
}

// lasts checks how long the kernel was set to keep a port open; zero: it is shut.
func (c *clocked) lasts(port uint16, want time.Duration, after string) {
	c.Helper()
	if got := c.kernel.lasts[guard.Element{Source: netip.MustParseAddr("192.0.2.2"), Proto: service.TCP,
		Port: port}]; got != want {
		c.Errorf("%v are left of port %d %s, want %v", got, port, after, want)
	}
}

// TestClockIsSetBack: setting the clock back prolongs nothing.
func TestClockIsSetBack(t *testing.T) {
	c := newClocked(t)
	g := c.grants("alice", 1, time.Minute)
	c.passes(10*time.Second, -time.Hour)
	lab.Must(t, c.putBack(c.now))
	c.lasts(22, 50*time.Second, "after a put-back")
	g.Until = c.now.Add(49 * time.Second).Round(0)
	lab.Must(t, c.Grant(t.Context(), []Grant{g}, c.now))
	c.lasts(22, 50*time.Second, "after a refresh")
	c.passes(50*time.Second, 0)
	if gs := c.Grants(c.now); len(gs) != 0 {
		t.Errorf("got %v, want none", gs)
	}
	c.wakes()
	c.lasts(22, 0, "at the end")
	if c.held.Len() != 0 {
		t.Error("it is still held")
	}
}

// TestClockRunsOn: while the machine slept or was paused, the kernel's timeouts stopped but the wall clock, and so
// the time promised to the client, ran on. Grants that are over are ended at once, the others end on time.
func TestClockRunsOn(t *testing.T) {
	for name, notices := range map[string]func(*clocked) error{
		"waking": func(c *clocked) error { c.wakes(); return nil },
		"revoke": func(c *clocked) error {
			_, err := c.Revoke(c.Context(), Match{Client: "nobody"}, c.now)
			c.wakes()
			return err
		},
		"put back": func(c *clocked) error { return c.putBack(c.now) },
		"reload":   func(c *clocked) error { return c.Load(c.Context(), 0, c.now) },
		"reconfigure": func(c *clocked) error {
			n := c.cfg
			n.Guarded = []service.Ports{{Proto: service.TCP, Low: 1, High: 100}}
			return c.Reconfigure(c.Context(), n, c.now)
		},
		"another's grant": func(c *clocked) error {
			g := Grant{Client: "dave", Source: netip.MustParseAddr("192.0.2.9"), Until: c.now.Add(time.Minute)}
			g.Ports = []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}
			return c.Grant(c.Context(), []Grant{g}, c.now)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClocked(t)
			c.cfg.Guarded = []service.Ports{{Proto: service.TCP, Low: 1, High: 100}}
			c.grants("alice", 3, 10*time.Minute) // ports 22 to 24
			c.grants("bob", 2, time.Hour)        // 22 and 23
			c.grants("carol", 1, 2*time.Hour)    // 22
			c.passes(time.Minute, 10*time.Minute)
			for _, client := range []string{"alice", "bob", "carol"} {
				if got, want := len(c.GrantsOf(client, c.now)), map[bool]int{true: 0, false: 1}[client == "alice"]; got != want {
					t.Errorf("%s has %d grants, want %d", client, got, want)
				}
			}
			lab.Must(t, notices(c))
			c.lasts(24, 0, "afterwards")
			c.lasts(23, 49*time.Minute, "afterwards")
			c.lasts(22, 109*time.Minute, "afterwards")
			c.passes(49*time.Minute, 0)
			c.wakes()
			c.lasts(23, 0, "at bob's end")
			if gs := c.Grants(c.now); len(gs) != 1 || gs[0].Client != "carol" {
				t.Errorf("got %v, want carol's", gs)
			}
		})
	}
}

// TestClockGoesBackAndOn: grants given after the clock was set back end by it, earlier ones do not, so a grant that
// was to end later may end first.
func TestClockGoesBackAndOn(t *testing.T) {
	c := newClocked(t)
	c.grants("alice", 1, 10*time.Minute) // port 22
	c.passes(0, -time.Hour)
	c.wakes()
	c.grants("bob", 2, 12*time.Minute) // and 23
	c.passes(0, 10*time.Minute)
	c.wakes()
	c.lasts(22, 10*time.Minute, "when the clock has gone on")
	c.lasts(23, 2*time.Minute, "when the clock has gone on")
	c.passes(2*time.Minute, 0)
	c.wakes()
	c.lasts(23, 0, "at bob's end")
	if gs := c.Grants(c.now); len(gs) != 1 || c.held.Len() != 1 || gs[0].Client != "alice" {
		t.Errorf("got %v, want alice's", gs)
	}
}

// TestRevokeByTheClock: when one of two grants for a port is revoked, the port is open until the other ends by the
// wall clock, even if that got ahead and nothing has noticed yet.
func TestRevokeByTheClock(t *testing.T) {
	c := newClocked(t)
	c.grants("alice", 1, 2*time.Hour)
	c.grants("bob", 1, time.Hour)
	c.passes(time.Minute, 10*time.Minute)
	_, err := c.Revoke(t.Context(), Match{Client: "alice"}, c.now)
	lab.Must(t, err)
	c.lasts(22, 49*time.Minute, "after alice's was revoked")
}

// TestKernelIsLate: a grant that may still be in the kernel can be revoked, and is in no list.
func TestKernelIsLate(t *testing.T) {
	c := newClocked(t)
	c.grants("alice", 1, time.Minute)
	c.passes(time.Minute, 0)
	if gs := c.Grants(c.now); len(gs) != 0 {
		t.Errorf("got %v, want none", gs)
	}
	c.lasts(22, time.Minute, "before any check")
	if gs, err := c.Revoke(t.Context(), Match{Client: "alice"}, c.now); len(gs) != 1 || err != nil {
		t.Errorf("revoked %v, %v, want alice's", gs, err)
	}
	c.lasts(22, 0, "after it was revoked")
}

// TestEndThatFails: a failed end is retried, and the grant can be revoked until then.
func TestEndThatFails(t *testing.T) {
	c := newClocked(t)
	c.grants("alice", 1, time.Minute)
	c.passes(time.Minute, 0)
	c.backend = failing{newDryRun(c.log)}
	c.wakes()
	c.backend = c.kernel
	c.wakes()
	c.lasts(22, 0, "after a retry")
	if c.held.Len() != 0 {
		t.Error("it is still held")
	}
}

// TestEndsOfMany: whatever clients are granted, and however the clock runs on, each holds its grant until its latest
// end and no longer, and the next end is the first.
func TestEndsOfMany(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 20 {
		c, ends := newClocked(t), make(map[string]time.Time)
		for range 100 {
			if rng.IntN(3) > 0 {
				client := fmt.Sprint("client", rng.IntN(8))
				if g := c.grants(client, 1, time.Duration(1+rng.IntN(60))*time.Minute); g.Until.After(ends[client]) {
					ends[client] = g.Until
				}
			} else {
				c.passes(time.Duration(rng.IntN(10))*time.Minute, time.Duration(rng.IntN(3)*rng.IntN(10))*time.Minute)
				c.wakes()
			}
			var first time.Time
			for client, end := range ends {
				if !end.After(c.now.Round(0)) {
					delete(ends, client)
				} else if first.IsZero() || end.Before(first) {
					first = end
				}
			}
			for _, g := range c.Grants(c.now) {
				if !g.Until.Equal(ends[g.Client]) {
					t.Fatalf("%s holds until %v, want %v", g.Client, g.Until, ends[g.Client])
				}
			}
			if n := c.held.Len(); n != len(ends) || !c.held.Next().Round(0).Equal(first) {
				t.Fatalf("%d hold, the next until %v, want %d and %v", n, c.held.Next(), len(ends), first)
			}
			if _, open := c.kernel.lasts[guard.Element{Source: netip.MustParseAddr("192.0.2.2"), Proto: service.TCP,
				Port: 22}]; open != (len(ends) > 0) {
				t.Fatalf("the port is open: %v, and %d hold it", open, len(ends))
			}
		}
	}
}

// TestManyEndsAtOnce: other callers get the lock before all grants have ended in the kernel.
func TestManyEndsAtOnce(t *testing.T) {
	c := newClocked(t)
	for i := range 10 {
		c.grants(fmt.Sprint("client", i), uint16(1+100*i), time.Minute)
	}
	c.passes(time.Minute, 0)
	turns := 0
	for ; c.endDue(c.now); turns++ {
		if c.kernel.most > 2*endAtOnce {
			t.Fatalf("%d ports were ended in one turn", c.kernel.most)
		}
	}
	if turns < 3 || len(c.kernel.lasts) != 0 || c.held.Len() != 0 {
		t.Errorf("after %d turns, want more, the kernel has %d ports and %d are held", turns,
			len(c.kernel.lasts), c.held.Len())
	}
}

// TestSlowKernel: the time left is computed when the kernel is changed, however late that is.
func TestSlowKernel(t *testing.T) {
	c := newClocked(t)
	c.cfg.Guarded = []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}
	asked := c.now
	c.passes(7*time.Second, 0) // it waited for the lock
	g := Grant{
		Client: "alice", Source: netip.MustParseAddr("192.0.2.2"), Until: asked.Add(time.Minute),
		Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}},
	}
	lab.Must(t, c.Grant(t.Context(), []Grant{g}, asked))
	c.lasts(22, 53*time.Second, "of a grant")
	for name, tell := range map[string]func(now time.Time) error{
		"load":     func(now time.Time) error { return c.Load(t.Context(), 0, now) },
		"put back": c.putBack,
		"reload":   func(now time.Time) error { return c.Reconfigure(t.Context(), c.cfg, now) },
	} {
		lab.Must(t, tell(asked))
		c.lasts(22, 53*time.Second, "after a "+name)
	}
}
