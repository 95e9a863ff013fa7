package firewall

import "time"

// Condition is how the guard is.
type Condition struct {
	Missing bool      // it could not be put back so far, and guarded ports may be open
	Trial   time.Time // it goes then, unless somebody comes in through a grant; zero: it stays
}

// Condition returns how the guard is.
func (f *Firewall) Condition() Condition {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Condition{Missing: f.guard.missing || !f.guard.loaded, Trial: f.guard.confirmBy}
}
