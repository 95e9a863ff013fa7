package firewall

import (
	"context"
	"errors"
)

// Cut ends the sessions of grants that have been revoked, or have ended, and returns how
// many there were: also those that DNAT leads on, and those in which only the server
// speaks. It leaves alone what another live grant for the same address and port covers,
// and every other address and port.
func (f *Firewall) Cut(ctx context.Context, gs []Grant) (int, error) {
	return 0, errors.New("firewall: not yet")
}
