package firewall

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/spa/lab"
)

// fighting is a guard that another tool changes every time it is put back.
type fighting struct {
	*dryRun
	loads   int
	quiet   time.Duration // before each change
	changes int           // number of changes
}

func (f *fighting) Load(guard.Spec, guard.Plan) error { f.loads++; return nil }

func (f *fighting) Watch(ctx context.Context, deadline time.Time) error {
	soonest := time.Now().Add(f.quiet)
	if f.loads > f.changes {
		return f.dryRun.Watch(ctx, deadline)
	}
	if !deadline.IsZero() && deadline.Before(soonest) {
		return f.dryRun.Watch(ctx, deadline)
	}
	if err := f.dryRun.Watch(ctx, soonest); ctx.Err() != nil {
		return err
	}
	return nil
}

// fight lets Watch run against another tool for a minute, and returns how often the guard was put back, and how many
// lines were logged about it.
func fight(t *testing.T, changes int, quiet time.Duration) (loads, lines int) {
	synctest.Test(t, func(t *testing.T) {
		f := lab.Value(New(Config{Backend: BackendDryRun, knobs: knobs{slots: 1}}, nil))(t)
		s := &site{T: t, Firewall: f}
		n := s.counts("put back")
		enemy := &fighting{dryRun: newDryRun(f.log), quiet: quiet, changes: changes}
		f.backend = enemy
		lab.Must(t, f.Load(t.Context(), 0, time.Now()))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := f.Watch(ctx); err != context.DeadlineExceeded {
			t.Fatalf("got %v from Watch", err)
		}
		loads, lines = enemy.loads-1, int(n.Load())
	})
	return loads, lines
}

func TestTwoToolsThatFight(t *testing.T) {
	loads, lines := fight(t, 1<<20, time.Millisecond)
	if loads < 60 || loads > 75 {
		t.Errorf("the guard was put back %d times in a minute, want about one a second", loads)
	}
	if lines < 2 || lines > 10 {
		t.Errorf("that was logged %d times in a minute, want once in a while", lines)
	}
}

// TestSlowFight: each change is answered at once if another tool leaves some time between them.
func TestSlowFight(t *testing.T) {
	loads, lines := fight(t, 1<<20, time.Second)
	if loads < 55 {
		t.Errorf("the guard was put back %d times in a minute, want once a second", loads)
	}
	if lines < 2 || lines > 10 {
		t.Errorf("that was logged %d times in a minute, want once in a while", lines)
	}
}

// TestEachPutBackIsSaid: put-backs that were not logged are reported later, even if nothing more happens.
func TestEachPutBackIsSaid(t *testing.T) {
	if loads, lines := fight(t, 5, time.Millisecond); loads != 5 || lines != 2 {
		t.Errorf("the guard was put back %d times, and that was logged %d times, want 5 and 2", loads, lines)
	}
}

func TestPace(t *testing.T) {
	now := time.Now()
	p := pace{}
	for i, want := range []time.Duration{0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000} {
		if got := p.next(now); got != want*time.Millisecond {
			t.Errorf("pause %d is %v, want %v", i, got, want*time.Millisecond)
		}
		p.last = now
		now = now.Add(follows)
	}
	if got := p.next(now.Add(1)); got != 0 {
		t.Errorf("the pause is %v after a while, want none", got)
	}
}
