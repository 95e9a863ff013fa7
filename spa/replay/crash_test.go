package replay

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// spentAt is a packet that Admit returned nil for, at a given clock, with the number of disk ops so far.
type spentAt struct {
	Entry
	now time.Time
	ops int
}

// flooredAt is a floor that SetFloor returned nil for, with the number of disk ops so far.
type flooredAt struct {
	topic [16]byte
	stamp time.Time
	ops   int
}

// load fills a journal beyond its room several times: keys come and go, clocks jump, request ids are retried and
// settled, floors are set.
func load(t *testing.T, j *Journal, d *memDisk, packets int) ([]spentAt, []flooredAt) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	var spent []spentAt
	var floored []flooredAt
	now := start
	for n := range packets {
		now = now.Add(time.Duration(rng.IntN(8000)-1500) * time.Millisecond)
		e := packet(uint64(rng.IntN(15)), n, now.Add(time.Duration(rng.IntN(60_000)-30_000)*time.Millisecond))
		e.Request = [16]byte{byte(rng.IntN(40))}
		if _, err := j.Admit(e, now); err == nil {
			spent = append(spent, spentAt{e, now, d.done()})
		}
		j.store.background.Wait()
		if n%3 == 0 {
			_ = j.Settle(e.Key, e.Request, []byte(fmt.Sprint("outcome of ", n)))
		}
		if n%11 == 0 { // stamped now, or as far ahead as a packet made now can be
			f := flooredAt{topic: [16]byte{byte(n)}, stamp: now.Add(time.Duration(n%2) * config().Window)}
			wantErr(t, "SetFloor", j.SetFloor(f.topic, f.stamp), nil)
			f.ops = d.done()
			floored = append(floored, f)
		}
	}
	return spent, floored
}

func mustRefuse(t *testing.T, j *Journal, spent []spentAt, ops int, what string) {
	t.Helper()
	for _, e := range spent {
		if e.ops > ops {
			return
		}
		if _, err := j.Admit(e.Entry, e.now); err == nil {
			t.Fatalf("%s: a packet of key %d that was admitted before is admitted again", what, e.Key)
		}
	}
}

// mustKeep checks each floor that was set by then, unless the journal refuses everything.
func mustKeep(t *testing.T, j *Journal, floored []flooredAt, ops int, what string) {
	t.Helper()
	all := j.Status().Floor
	for _, f := range floored {
		if f.ops <= ops && all.Before(f.stamp) && j.FloorOf(f.topic).Before(f.stamp) {
			t.Fatalf("%s: the floor at %v is gone, and that of the journal is %v", what, f.stamp, all)
		}
	}
}

// A process may be killed after any number of writes, and within the last one: a packet that Admit returned nil for is
// never admitted again, at any clock, and no floor is lost. A kill between writes, the only place where it happens,
// causes no other refusals.
func TestEveryCrash(t *testing.T) {
	c := config()
	c.Room, c.LiveNonces = 16, 4
	d := blank(t, c)
	j := reopen(t, d, c, start)
	d.fail = d.tight
	opened := len(d.ops)
	spent, floored := load(t, j, d, 80)
	if len(spent) < 60 || len(d.ops) < 140 {
		t.Fatalf("only %d packets were spent by %d writes", len(spent), len(d.ops))
	}
	image := []byte{}
	for n, o := range d.ops {
		for torn := 0; n >= opened && torn <= len(o.data); torn++ {
			disk := &memDisk{image: o.apply(append([]byte{}, image...), torn)}
			whole := torn == 0 || torn == len(o.data)
			j := reopen(t, disk, c, start)
			if s := j.Status(); whole && (s.Reason != "" || !s.Floor.IsZero()) {
				t.Fatalf("op %d (%s), %d of %d bytes: %+v", n, o.kind, torn, len(o.data), s)
			}
			if whole {
				last := spent[len(spent)-1].now
				admit(t, j, packet(999, 1, last), last, nil)
			}
			what := fmt.Sprintf("op %d (%s), %d of %d bytes", n, o.kind, torn, len(o.data))
			mustKeep(t, j, floored, n, what)
			mustRefuse(t, j, spent, n, what)
		}
		image = o.apply(image, len(o.data))
	}
}

// Power loss undoes any of the writes since the last sync, wholly or partly. Then the boot id differs and the clock may
// be behind; nothing that was admitted, or refused by a floor, is admitted.
func TestEveryPowerLoss(t *testing.T) {
	c := config()
	c.Room, c.LiveNonces = 64, 8
	d := blank(t, c)
	opened := len(d.ops)
	spent, floored := load(t, reopen(t, d, c, start), d, 120)
	rng := rand.New(rand.NewPCG(3, 4))
	c.BootID = "next"
	synced, since := []byte{}, []op{}
	for n, o := range d.ops {
		if o.kind == "sync" {
			for _, o := range since {
				synced = o.apply(synced, len(o.data))
			}
			since = nil
			continue
		}
		since = append(since, o)
		for range 3 {
			if n < opened {
				break
			}
			image := append([]byte{}, synced...)
			for _, o := range since {
				if rng.IntN(2) == 0 {
					image = o.apply(image, rng.IntN(len(o.data)+1))
				}
			}
			j := reopen(t, &memDisk{image: image}, c, start.Add(-time.Hour))
			what := fmt.Sprintf("power loss after op %d", n)
			mustKeep(t, j, floored, n, what)
			mustRefuse(t, j, spent, n, what)
		}
	}
}

func TestInterruptedRenewal(t *testing.T) {
	j, d := fresh(t, config())
	e := packet(1, 1, start)
	admit(t, j, e, start, nil)
	for why, change := range map[reason]func(c *Config, d *memDisk){
		rebooted: func(c *Config, _ *memDisk) { c.BootID = "next" },
		damaged:  func(_ *Config, d *memDisk) { d.image[offset(1)+20]++ },
	} {
		t.Run(why.String(), func(t *testing.T) {
			c, old := config(), copyOf(d)
			change(&c, old)
			image := append([]byte{}, old.image...)
			reopen(t, old, c, start)
			for n, o := range old.ops {
				image = o.apply(image, len(o.data))
				j := reopen(t, &memDisk{image: append([]byte{}, image...)}, c, start)
				if s := j.Status(); s.Reason != why.String() {
					t.Errorf("after op %d: %+v", n, s)
				}
				admit(t, j, e, start, ErrFloor)
			}
		})
	}
}
