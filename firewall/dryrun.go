package firewall

import (
	"context"
	"log/slog"
	"os"
	"time"

	"sallyport/firewall/internal/guard"
)

// dryRun decides nothing and enforces nothing: it says what it was told to do.
type dryRun struct {
	log *slog.Logger
}

var _ backend = (*dryRun)(nil)

func newDryRun(log *slog.Logger) *dryRun { return &dryRun{log: log} }

func (d *dryRun) describe() string {
	return "dry run: decides and records, guards nothing and opens nothing"
}

func (d *dryRun) load(_ guard.Spec, p guard.Plan) error {
	d.log.Info("dry run: would load the guard", "elements", len(p.Leases), "confirm", p.ConfirmBy)
	return nil
}

func (d *dryRun) set(es []guard.Lease) error {
	for _, e := range es {
		d.log.Debug("dry run: would set", "source", e.Source, "proto", e.Proto, "port", e.Port, "until", e.Until)
	}
	return nil
}

func (d *dryRun) permanent() error {
	d.log.Info("dry run: would make the guard permanent")
	return nil
}

func (d *dryRun) remove() error {
	d.log.Info("dry run: would remove the guard")
	return nil
}

func (d *dryRun) watch(ctx context.Context, deadline time.Time) error {
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

func (d *dryRun) name() string                      { return BackendDryRun }
func (d *dryRun) persists() bool                    { return false }
func (d *dryRun) carried() ([]guard.Carried, error) { return nil, nil }
func (d *dryRun) entered() (bool, error)            { return false, nil }
func (d *dryRun) close() error                      { return nil }
func (d *dryRun) processes() []Process              { return nil }
