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

// A past is what the model knows about an entry from those that were admitted before.
type past struct {
	same      *modelEntry // with the same nonce
	known     *modelEntry // of the same request
	done      bool        // a packet of the request was admitted, no earlier than the first that the entry names
	certain   bool        // the request id cannot have been forgotten
	mayForget bool        // a later nonce may have been forgotten

	live, surely, all int // nonces that are live, that are live and not forgotten, that are remembered
}

// past returns what is known about an entry.
func (m *model) past(e Entry, now time.Time) past {
	var p past
	first := e.Stamp
	if !e.First.IsZero() {
		first = e.First
	}
	for _, old := range m.spent {
		if old.Key != e.Key {
			continue
		}
		if old.Nonce == e.Nonce {
			p.same = old
		}
		if old.previous {
			continue
		}
		if m.live(old, now) {
			p.live++
		}
		if m.live(old, now) && !old.forgets {
			p.surely++
		}
		if m.remembered(old, now) {
			p.all++
		}
		p.mayForget = p.mayForget || old.forgets && !first.After(old.Stamp)
		if old.Request == e.Request && !old.reused {
			p.known = old
			p.done = p.done || !first.After(old.Stamp)
			p.certain = p.certain || !old.forgets
		}
	}
	return p
}

// judge returns what is wrong with the verdict on an entry, or nil.
func (m *model) judge(e Entry, now time.Time, a Admission, err error) error {
	p := m.past(e, now)
	switch {
	case err == nil || err == ErrReused:
		return m.judgeAdmitted(e, p, a, err)
	case errors.Is(err, ErrSpent):
		if p.same == nil || (err == ErrSpent) != (p.same.From == e.From) {
			return errors.New("not what was spent")
		}
	case err == ErrFloor:
		if e.Stamp.UnixNano() > m.floor {
			return errors.New("it is above the floor")
		}
	case err == ErrForgotten:
		if !p.mayForget {
			return errors.New("nothing after it can be forgotten")
		}
	case err == ErrFull:
		if p.live < m.c.LiveNonces && p.all < 2*m.c.LiveNonces {
			return fmt.Errorf("only %d are live of %d", p.live, p.all)
		}
	default:
		return errors.New("not a verdict")
	}
	return nil
}

// judgeAdmitted judges a verdict that spent the nonce.
func (m *model) judgeAdmitted(e Entry, p past, a Admission, err error) error {
	switch {
	case p.same != nil:
		return errors.New("admitted twice")
	case e.Stamp.UnixNano() <= m.floor:
		return errors.New("admitted below the floor")
	case p.surely >= m.c.LiveNonces:
		return fmt.Errorf("%d are live", p.surely)
	case a.Retry && (p.known == nil || p.known.Digest != e.Digest):
		return errors.New("a retry of nothing")
	case err == nil && !a.Retry && p.certain:
		return errors.New("not recognised as a retry")
	case err == nil && !a.Retry && p.done:
		return errors.New("a request is done twice")
	case err == ErrReused && p.known == nil:
		return errors.New("the request id is new")
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
