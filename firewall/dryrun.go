package firewall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/nftables"
	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

// dryRun is a backend that only logs what it would do.
type dryRun struct {
	log *slog.Logger
}

var _ guard.Backend = (*dryRun)(nil)

func newDryRun(log *slog.Logger) *dryRun { return &dryRun{log: log} }

func (d *dryRun) Describe() string {
	return "dry run: decides and records, but guards and opens nothing"
}

func (d *dryRun) Load(spec guard.Spec, p guard.Plan) error {
	d.log.Info("dry run: would load the guard", "elements", len(p.Leases), "confirm", p.ConfirmBy)
	for _, l := range guard.Legs(spec.Forwards) {
		d.log.Info("dry run: would lead clients with a grant on", "from", service.Ports{Proto: l.Proto, Low: l.Port,
			High: l.Port}.String(), "to", l.Place(), "masquerade", l.Masquerade)
	}
	return nil
}

func (d *dryRun) Set(es []guard.Lease) error {
	for _, e := range es {
		d.log.Debug("dry run: would set", "source", service.NetworkText(guard.Prefix(e.Source, e.Bits)), "proto", e.Proto,
			"port", e.Port, "until", e.Until)
	}
	return nil
}

func (d *dryRun) Widen(spec guard.Spec, _ bool) error {
	d.log.Debug("dry run: would look for networks", "ready", spec.Networks, "widths", len(spec.Spans))
	return nil
}

func (d *dryRun) Permanent() error {
	d.log.Info("dry run: would make the guard permanent")
	return nil
}

func (d *dryRun) Remove() error {
	d.log.Info("dry run: would remove the guard")
	return nil
}

func (d *dryRun) Watch(ctx context.Context, deadline time.Time) error {
	var passed <-chan time.Time
	if !deadline.IsZero() {
		t := time.NewTimer(time.Until(deadline))
		defer t.Stop()
		passed = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-passed:
		return os.ErrDeadlineExceeded
	}
}

func (d *dryRun) Name() string                      { return BackendDryRun }
func (d *dryRun) Persists() bool                    { return false }
func (d *dryRun) Carried() ([]guard.Carried, error) { return nil, nil }
func (d *dryRun) Taken() ([]guard.Element, error)   { return nil, nil }
func (d *dryRun) Entered() (bool, error)            { return false, nil }
func (d *dryRun) Close() error                      { return nil }
func (d *dryRun) Processes() []Process              { return nil }

// endEarlier ends all grants of earlier runs, because a dry run could not revoke them. An existing guard stays and
// admits nobody: removing it would open the host.
func (f *Firewall) endEarlier(now time.Time) error {
	if f.cfg.State == "" { // a dry run without a gateway
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

// endRecorded erases the grants in the ledger, so that no later start restores them.
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
			f.log.Warn("grant ended: a dry run could not revoke it",
				"client", h.Client, "service", h.Service, "source", grantOf(h).Peer().String(), "ports", fmt.Sprint(h.Ports))
		}
		return err
	}), l.Close())
}

// endEnforced ends the grants in the kernel, whichever backend put them there.
func (f *Firewall) endEnforced() error {
	stands, err := nftables.EndGrants(f.cfg.spec())
	if err != nil && !nl.NoNftables(err) {
		return err
	}
	kinds, err := iptables.Leftover()
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		if err := iptables.EndGrants(); err != nil {
			return fmt.Errorf("in the sets of iptables (%s): %w", kind, err)
		}
	}
	if stands || len(kinds) > 0 {
		f.log.Warn("the guard of an earlier run is in place and, because this is a dry run, admits nobody; to remove " +
			"it: spa-server teardown")
	}
	return nil
}
