package replay

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// model is a journal that forgets nothing: what was admitted, and the latest clock seen since, which determines what
// the real journal may have forgotten.
type model struct {
	c     Config
	spent []*modelEntry
	floor int64
}

type modelEntry struct {
	Entry
	reused   bool
	forgets  bool // a clock was seen at which no packet of its request was fresh
	previous bool // of an earlier boot
}

func (m *model) live(e *modelEntry, now time.Time) bool {
	return !e.previous && !now.After(e.Stamp.Add(m.c.Window))
}

func (m *model) remembered(e *modelEntry, now time.Time) bool {
	return !e.previous && !now.After(e.Stamp.Add(2*m.c.Window))
}

func (m *model) see(now time.Time) {
	for _, e := range m.spent {
		e.forgets = e.forgets || !m.remembered(e, now)
	}
}

// judge returns what is wrong with the verdict on an entry, or nil.
func (m *model) judge(e Entry, now time.Time, a Admission, err error) error {
	live, surely, all, mayForget := 0, 0, 0, false
	var same, known *modelEntry
	first := e.Stamp
	if !e.First.IsZero() {
		first = e.First
	}
	done := false    // a packet of the request was admitted before, no earlier than the first that this one names
	certain := false // the request id cannot have been forgotten
	for _, old := range m.spent {
		if old.Key != e.Key {
			continue
		}
		if old.Nonce == e.Nonce {
			same = old
		}
		if old.previous {
			continue
		}
		if m.live(old, now) {
			live++
		}
		if m.live(old, now) && !old.forgets {
			surely++
		}
		if m.remembered(old, now) {
			all++
		}
		mayForget = mayForget || old.forgets && !first.After(old.Stamp)
		if old.Request == e.Request && !old.reused {
			known = old
			done = done || !first.After(old.Stamp)
			certain = certain || !old.forgets
		}
	}
	switch {
	case err == nil || err == ErrReused:
		if same != nil {
			return errors.New("admitted twice")
		}
		if e.Stamp.UnixNano() <= m.floor {
			return errors.New("admitted below the floor")
		}
		if surely >= m.c.LiveNonces {
			return fmt.Errorf("%d are live", surely)
		}
		if a.Retry && (known == nil || known.Digest != e.Digest) {
			return errors.New("a retry of nothing")
		}
		if err == nil && !a.Retry && certain {
			return errors.New("not known for a retry")
		}
		if err == nil && !a.Retry && done {
			return errors.New("a request is done twice")
		}
		if err == ErrReused && known == nil {
			return errors.New("the request id is new")
		}
	case errors.Is(err, ErrSpent):
		if same == nil || (err == ErrSpent) != (same.From == e.From) {
			return errors.New("not what was spent")
		}
	case err == ErrFloor:
		if e.Stamp.UnixNano() > m.floor {
			return errors.New("it is above the floor")
		}
	case err == ErrForgotten:
		if !mayForget {
			return errors.New("nothing after it can be forgotten")
		}
	case err == ErrFull:
		if live < m.c.LiveNonces && all < 2*m.c.LiveNonces {
			return fmt.Errorf("only %d are live of %d", live, all)
		}
	default:
		return errors.New("not a verdict")
	}
	return nil
}

// A journal and the model under random packets, copies, retries, clocks, restarts, reboots and growth.
func TestModel(t *testing.T) {
	counts := map[error]int{}
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, rand.New(rand.NewPCG(seed, 0)), 3000, counts) })
	}
	for _, err := range []error{nil, ErrSpent, ErrSpentElsewhere, ErrFloor, ErrForgotten, ErrFull, ErrReused} {
		if counts[err] < 100 {
			t.Errorf("got %v only %d times", err, counts[err])
		}
	}
}

func runModel(t *testing.T, rng *rand.Rand, steps int, counts map[error]int) {
	c := config()
	c.LiveNonces, c.Room = 1+rng.IntN(12), 16
	m := &model{c: c}
	d := blank(t, c)
	d.fail = d.tight
	j := reopen(t, d, c, start)
	now := start
	for n := range steps {
		now = step(rng, now)
		switch rng.IntN(200) {
		case 0:
			j.store.background.Wait()
			j = reopen(t, d, c, now)
		case 1:
			j.store.background.Wait()
			c.BootID = fmt.Sprint("boot ", n)
			j = reopen(t, d, c, now)
			m.reboot(t, j, now)
		}
		e := m.packet(rng, n, now)
		if d := e.Stamp.Sub(now).Abs(); d > c.Window {
			continue
		}
		m.see(now)
		a, err := j.Admit(e, now)
		if bad := m.judge(e, now, a, err); bad != nil {
			t.Fatalf("step %d: key %d, stamp %v after the clock: got %v, %+v: %v", n, e.Key, e.Stamp.Sub(now), err, a, bad)
		}
		counts[err]++
		if err == nil || err == ErrReused {
			m.spent = append(m.spent, &modelEntry{Entry: e, reused: err != nil})
		}
		m.settle(t, j, e, a, err)
	}
}

// step moves the clock: usually a little ahead, sometimes far ahead or back.
func step(rng *rand.Rand, now time.Time) time.Time {
	switch rng.IntN(60) {
	case 0:
		return now.Add(time.Duration(rng.IntN(600)) * time.Second)
	case 1:
		return now.Add(-time.Duration(rng.IntN(600)) * time.Second)
	}
	return now.Add(time.Duration(rng.IntN(1500)) * time.Millisecond)
}

// packet returns a new packet, a copy or a retry.
func (m *model) packet(rng *rand.Rand, n int, now time.Time) Entry {
	stamp := now.Add(time.Duration(rng.IntN(60_001)-30_000) * time.Millisecond)
	e := packet(uint64(rng.IntN(4)), n, stamp)
	if len(m.spent) == 0 {
		return e
	}
	old := m.spent[max(0, len(m.spent)-1-rng.IntN(60))].Entry
	switch rng.IntN(5) {
	case 0:
		if rng.IntN(2) == 0 {
			old.From = old.From.Next()
		}
		return old
	case 1:
		e.Key, e.Request, e.Digest = old.Key, old.Request, old.Digest
		if rng.IntN(4) == 0 {
			e.Digest[0]++
		}
		if first := m.first(old); rng.IntN(2) == 0 && first.Before(e.Stamp) {
			e.First = first
		}
	}
	return e
}

// first returns the stamp of the first packet of a request.
func (m *model) first(of Entry) time.Time {
	first := of.Stamp
	for _, old := range m.spent {
		if old.Key == of.Key && old.Request == of.Request && old.Stamp.Before(first) {
			first = old.Stamp
		}
	}
	return first
}

func (m *model) reboot(t *testing.T, j *Journal, now time.Time) {
	m.floor = j.Status().Floor.UnixNano()
	if m.floor < now.Add(m.c.Window).UnixNano() {
		t.Fatal("the floor is too low for the clock")
	}
	for _, e := range m.spent {
		e.previous = true
		if e.Stamp.Add(m.c.Window).UnixNano() > m.floor {
			t.Fatal("the floor is too low for what was admitted")
		}
	}
}

// settle settles a new request, and checks that a retry returns what was settled.
func (m *model) settle(t *testing.T, j *Journal, e Entry, a Admission, err error) {
	t.Helper()
	if err != nil {
		return
	}
	outcome := append(e.Request[:8:8], byte(a.First.UnixNano()))
	if a.Retry && !bytes.Equal(a.Outcome, outcome) {
		t.Fatalf("got the outcome %x, want %x", a.Outcome, outcome)
	}
	if !a.Retry {
		wantErr(t, "Settle", j.Settle(e.Key, e.Request, outcome), nil)
	}
}
