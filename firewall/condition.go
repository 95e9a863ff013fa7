package firewall

import (
	"context"
	"time"

	"sallyport/firewall/internal/keeper"
)

// Condition is the state of the guard.
type Condition struct {
	Missing bool      // the guard could not be put back so far, and guarded ports may be open
	Trial   time.Time // when the guard is removed unless a client connects through a grant first; zero: it stays
	TrialBy string    // the client that must connect for that; empty: any
	Unkept  bool      // the keeper, which protects the guard from other tools while no daemon runs, has ended
	PutBack uint64    // how often the guard was put back after another tool had changed it
}

// withKeeper is implemented by backends that have a keeper.
type withKeeper interface {
	KeeperGone() bool
	AwaitKeeper(ctx context.Context) (ended bool) // false: ctx ended first
}

// watchKeeper logs an unexpected end of the keeper. A daemon that has dropped its privileges cannot start another.
func (f *Firewall) watchKeeper(ctx context.Context) {
	b, ok := f.backend.(withKeeper)
	if !ok || !b.AwaitKeeper(ctx) {
		return
	}
	for range keeper.Looks { // the kernel closes its files shortly before the process can be waited for
		f.mu.Lock()
		gone := b.KeeperGone()
		f.mu.Unlock()
		if gone {
			f.log.Error("the guard's keeper has ended: the guard is in place, but if the server is killed too, "+
				"another tool can flush it",
				"do", "systemctl restart spa-server (grants and sessions continue)")
			return
		}
		if !rest(ctx, time.Millisecond) {
			return
		}
	}
}

// Condition returns the state of the guard.
func (f *Firewall) Condition() Condition {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.backend.(withKeeper)
	return Condition{Unkept: ok && b.KeeperGone(), Missing: f.state.missing || !f.state.loaded, Trial: f.state.confirmBy,
		TrialBy: f.cfg.ConfirmBy, PutBack: f.back}
}

// Time lets observe know how long each change of grants in the kernel took. Call it before the first grant.
func (f *Firewall) Time(observe func(time.Duration)) { f.timed = observe }
