package guard

import (
	"context"
	"time"
)

// Backend enforces grants. Except for Watch, only one goroutine at a time calls it.
type Backend interface {
	// Name returns the backend's constant.
	Name() string
	// Persists reports whether the guard survives a flush by another tool while no daemon runs.
	Persists() bool
	// Describe returns a sentence that names the backend and what this kernel lacks.
	Describe() string
	// Load makes the guard match the spec and the plan in one step: either all of it changes or nothing does. Guarded
	// ports stay shut throughout. The other methods use this spec until the next load. If a table of our name is not
	// ours, Load returns ErrForeign.
	Load(spec Spec, p Plan) error
	// Widen makes the guard in place look for networks of Spec.Spans as well, in one step: all or nothing. Only Spans and
	// Networks differ from the spec of the load. Every element stays as it is. With confirm the guard is on trial.
	Widen(spec Spec, confirm bool) error
	// Set gives each element the end that its lease names, whatever it was before, in one step: all or none. Elements
	// whose end has passed are removed. At ports of Spec.Once the lease's Turn counts. The lease's Was is a hint: the
	// kernel may have lost the element, or have one that it should not have. A full table is ErrFull; a missing one is
	// ErrGone.
	Set(es []Lease) error
	// Carried returns the flows that the guard in place still carries, and the time left of each.
	Carried() ([]Carried, error)
	// Taken returns the elements at ports of Spec.Once whose flow has come, or may have.
	Taken() ([]Element, error)
	// Entered reports whether a new flow through a grant has begun since the load.
	Entered() (bool, error)
	// Permanent takes the timeouts off the guarded ports.
	Permanent() error
	// Remove removes the guard; a missing one is no error.
	Remove() error
	// Watch blocks until another tool has changed the guard, until the deadline (zero: none), which returns
	// os.ErrDeadlineExceeded, or until ctx ends.
	Watch(ctx context.Context, deadline time.Time) error
	// Close closes the backend's sockets. The guard stays.
	Close() error
	// Processes returns the running processes that work for the backend.
	Processes() []Process
}
