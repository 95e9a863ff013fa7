package firewall

import (
	"context"
	"errors"
	"time"
)

// Reconfigure makes the guard what c says, in one batch: Guarded, Addresses, Knock, Closed,
// Trusted, Cut and Keep may differ from what they were. No port that stays guarded is open
// for an instant, and its live grants go on; grants for ports that are guarded no more end,
// and so do those that Keep takes back. Where another field differs that is an error that
// names it, and nothing is changed; nor is anything where the batch fails.
func (f *Firewall) Reconfigure(ctx context.Context, c Config, now time.Time) error {
	return errors.New("firewall: not yet")
}
