package firewall

import (
	"context"
	"time"

	"sallyport/firewall/internal/keeper"
)

// Condition is how the guard is.
type Condition struct {
	Missing bool      // it could not be put back so far, and guarded ports may be open
	Trial   time.Time // it goes then, unless somebody comes in through a grant; zero: it stays
	Unkept  bool      // the process that keeps it over another tool's flush while no daemon runs has ended
}

// withKeeper is a backend with a keeper.
type withKeeper interface {
	KeeperGone() bool
	AwaitKeeper(ctx context.Context) (ended bool) // false: ctx has
}

// watchKeeper logs the end of the keeper, unless it was told to end. A daemon that has given up its privileges
// cannot start another.
func (f *Firewall) watchKeeper(ctx context.Context) {
	b, ok := f.backend.(withKeeper)
	if !ok || !b.AwaitKeeper(ctx) {
		return
	}
	for range keeper.Looks { // its files are closed a moment before it can be waited for
		f.mu.Lock()
		gone := b.KeeperGone()
		f.mu.Unlock()
		if gone {
			f.log.Error("the keeper of the guard has ended: the guard stands, but if the server is killed too, "+
				"another tool can flush it",
				"do", "systemctl restart spa-server (grants and sessions go on)")
			return
		}
		if !rest(ctx, time.Millisecond) {
			return
		}
	}
}

// Condition returns how the guard is.
func (f *Firewall) Condition() Condition {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.backend.(withKeeper)
	return Condition{Unkept: ok && b.KeeperGone(), Missing: f.guard.missing || !f.guard.loaded, Trial: f.guard.confirmBy}
}
