package firewall

import (
	"errors"
	"time"

	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/nftables"
	"sallyport/firewall/internal/nl"
)

// Stands reports whether a guard, of whichever backend, is in this network namespace.
func Stands() (bool, error) {
	if there, err := nftables.InPlace(); err != nil || there {
		return there, err
	}
	kinds, err := iptables.Leftover()
	return len(kinds) > 0, err
}

// teardownAll takes the guard away, by whichever backend it was put there. See teardown.
func teardownAll(state string, mark func() error) (rest func() error, err error) {
	nothing := func() error { return nil }
	kinds, err := iptables.Leftover()
	if err != nil {
		return nothing, err
	}
	marked := false
	rest, err = nftables.Teardown(state, func() error { marked = true; return mark() })
	if nl.NoNftables(err) && !marked {
		err = mark()
	}
	if err != nil {
		return rest, err
	}
	if err := iptables.RemoveLeftover(kinds); err != nil {
		return rest, err
	}
	return rest, iptables.RemoveSets()
}

// sweep takes away what the other backend has left, once this one guards: with both, a
// grant would open nothing. A dry run ends what earlier runs granted.
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
		err = nil // nothing there that is ours
	}
	return errors.Join(err, rest())
}
