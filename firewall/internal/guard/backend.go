package guard

import (
	"context"
	"time"
)

// Backend is what enforces grants. One goroutine at a time calls it, except for Watch.
type Backend interface {
	// Name is the backend's constant.
	Name() string
	// Persists reports whether the guard outlives a foreign flush while no daemon runs.
	Persists() bool
	// Describe says in a sentence what enforces, and what is lacking.
	Describe() string
	// Load makes the guard what the spec and the plan say, in one step: either all of it or
	// nothing changes. Guarded ports are shut throughout. Until the next load the spec holds
	// for all other methods. A table that is not ours is ErrForeign.
	Load(spec Spec, p Plan) error
	// Set makes each element end when its lease says, in one step, whatever it had
	// before: all or none. An element whose end has passed is gone. A full table is
	// ErrFull; no table is ErrGone.
	Set(es []Lease) error
	// Carried returns the flows that the guard in place still carries, and what is left of each.
	Carried() ([]Carried, error)
	// Entered reports whether a new flow through a grant has begun since the load.
	Entered() (bool, error)
	// Permanent takes the timeouts off the guarded ports.
	Permanent() error
	// Remove takes the guard away; none in place is no error.
	Remove() error
	// Watch blocks until another tool has changed the guard, the deadline (zero: none)
	// passes, which is os.ErrDeadlineExceeded, or ctx ends.
	Watch(ctx context.Context, deadline time.Time) error
	// Close lets go of the kernel. The guard stays.
	Close() error
	// Processes are those that work for the backend and live.
	Processes() []Process
}
