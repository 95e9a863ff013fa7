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

var _ guard.Backend = (*dryRun)(nil)

func newDryRun(log *slog.Logger) *dryRun { return &dryRun{log: log} }

func (d *dryRun) Describe() string {
	return "dry run: decides and records, guards nothing and opens nothing"
}

func (d *dryRun) Load(_ guard.Spec, p guard.Plan) error {
	d.log.Info("dry run: would load the guard", "elements", len(p.Leases), "confirm", p.ConfirmBy)
	return nil
}

func (d *dryRun) Set(es []guard.Lease) error {
	for _, e := range es {
		d.log.Debug("dry run: would set", "source", e.Source, "proto", e.Proto, "port", e.Port, "until", e.Until)
	}
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
func (d *dryRun) Entered() (bool, error)            { return false, nil }
func (d *dryRun) Close() error                      { return nil }
func (d *dryRun) Processes() []Process              { return nil }
