package firewall

import (
	"context"
	"time"

	"sallyport/firewall/internal/guard"
)

// backend is what enforces grants. One goroutine at a time calls it, except for watch.
type backend interface {
	// name is the backend's constant.
	name() string
	// persists reports whether the guard outlives a foreign flush while no daemon runs.
	persists() bool
	// describe says in a sentence what enforces, and what is lacking.
	describe() string
	// load makes the guard what the spec and the plan say, in one step: either all of it or
	// nothing changes. Until the next load the spec holds for all other methods. Guarded ports are shut throughout. A table that is not ours is
	// ErrForeign.
	load(spec guard.Spec, p guard.Plan) error
	// set makes each element end when its lease says, in one step, whatever it had
	// before: all or none. An element whose end has passed is gone. A full table is
	// ErrFull; no table is errGone.
	set(es []guard.Lease) error
	// carried returns the flows that the guard in place still carries, and what is left of each.
	carried() ([]guard.Carried, error)
	// entered reports whether a new flow through a grant has begun since the load.
	entered() (bool, error)
	// permanent takes the timeouts off the guarded ports.
	permanent() error
	// remove takes the guard away; none in place is no error.
	remove() error
	// watch blocks until another tool has changed the guard, the deadline (zero: none)
	// passes, which is os.ErrDeadlineExceeded, or ctx ends.
	watch(ctx context.Context, deadline time.Time) error
	close() error
	// processes are those that work for the backend and live.
	processes() []Process
}
