package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/etcd"
)

// reportEvery is the time between two looks at the gateway's report: the file is small, and nearby.
const reportEvery = time.Second

// A Reporter carries a gateway's report of which bundle it has taken over from a file to the store. It cannot verify
// it: the office does.
type Reporter struct {
	File    string // that spa-server writes: taken in [fleet] of server.toml
	Gateway string
	Fleet   keys.FleetID
	Store   *etcd.Store
	Log     *slog.Logger

	trouble notes
}

// Run carries each new report until ctx ends. It looks now and then whether the last one is still in the store, which
// may have been restored from a backup.
func (r *Reporter) Run(ctx context.Context) {
	note := func(err error) {
		if err != nil {
			err = fmt.Errorf("the office does not see which bundle the gateway has: %w", err)
		}
		r.trouble.note(r.Log, err)
	}
	File{r.File, reportEvery}.Follow(ctx, func(text []byte) error {
		err := r.take(ctx, text)
		note(err)
		return err
	}, note)
}

// take carries one report, if it says that it is of this gateway.
func (r *Reporter) take(ctx context.Context, text []byte) error {
	if len(text) == 0 { // the gateway has no bundle
		return nil
	}
	said, err := fleet.ParseTaken(text)
	if err != nil {
		return fmt.Errorf("%s: %w", r.File, err)
	}
	if said.Fleet != r.Fleet || said.Gateway != r.Gateway {
		return errors.New(r.File + " has the report of another gateway")
	}
	return r.Store.Report(ctx, r.Gateway, text)
}
