package firewall

import (
	"errors"
	"time"

	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/nftables"
	"sallyport/firewall/internal/nl"
)

// Stands reports whether a guard of either backend is in this network namespace.
func Stands() (bool, error) {
	if there, err := nftables.InPlace(); err != nil || there {
		return there, err
	}
	kinds, err := iptables.Leftover()
	return len(kinds) > 0, err
}

// teardownAll removes the guards of both backends, and calls tornDown once before it. See nftables.Teardown.
func teardownAll(state string, tornDown func() error) (rest func() error, err error) {
	nothing := func() error { return nil }
	kinds, err := iptables.Leftover()
	if err != nil {
		return nothing, err
	}
	called := false
	rest, err = nftables.Teardown(state, func() error { called = true; return tornDown() })
	if nl.NoNftables(err) && !called {
		err = tornDown()
	}
	if err != nil {
		return rest, err
	}
	if err := iptables.RemoveLeftover(kinds); err != nil {
		return rest, err
	}
	return rest, iptables.RemoveSets()
}

// sweep removes what the other backend left, once this one guards: a grant would open nothing if both did. A dry run
// ends the grants of earlier runs.
func (f *Firewall) sweep(now time.Time) error {
	switch f.backend.Name() {
	case BackendDryRun:
		return f.endEarlier(now)
	case BackendNftables:
		kinds, err := iptables.Leftover()
		if err != nil {
			return err
		}
		return iptables.RemoveLeftover(kinds)
	}
	rest, err := nftables.Teardown(f.cfg.State, func() error { return nil })
	if nl.NoNftables(err) || errors.Is(err, ErrForeign) {
		err = nil // there is nothing of ours
	}
	return errors.Join(err, rest())
}
