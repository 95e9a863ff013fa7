package firewall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/nftables"
	"sallyport/firewall/internal/nl"
)

// endEarlier ends all that earlier runs granted: a dry run can revoke none of it. A guard that
// stands stays, and lets nobody in; to take it away would open the host.
func (f *Firewall) endEarlier(now time.Time) error {
	if f.cfg.State == "" { // the dry run of no gateway
		return nil
	}
	err := f.endRecorded(now)
	if err == nil {
		err = f.endEnforced()
	}
	if err != nil {
		return fmt.Errorf("a dry run cannot start while grants of an earlier run may be open (spa-server "+
			"teardown ends them): %w", err)
	}
	return nil
}

// endRecorded erases what the ledger holds, so that no later start brings it back.
func (f *Firewall) endRecorded(now time.Time) error {
	if _, err := os.Lstat(filepath.Join(f.cfg.State, ledger.FileName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	l, err := openLedger(&f.cfg)
	if err != nil {
		return err
	}
	return errors.Join(l.Alone(func() error {
		hs, err := l.Read(now)
		for _, h := range hs {
			if err := l.Erase(h); err != nil {
				return err
			}
			f.log.Warn("grant ended, because a dry run could not revoke it",
				"client", h.Client, "service", h.Service, "source", h.Source.String(), "ports", fmt.Sprint(h.Ports))
		}
		return err
	}), l.Close())
}

// endEnforced ends what the kernel holds, by whichever backend it was put there.
func (f *Firewall) endEnforced() error {
	stands, err := nftables.EndGrants(f.cfg.spec())
	if err != nil && !nl.NoNftables(err) {
		return err
	}
	kinds, err := leftover()
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		if err := endInSets(); err != nil {
			return fmt.Errorf("in the sets of iptables (%s): %w", kind, err)
		}
	}
	if stands || len(kinds) > 0 {
		f.log.Warn("the guard of an earlier run is in place and lets nobody in, because this is a dry run; to remove " +
			"it: spa-server teardown")
	}
	return nil
}
