// Package agent brings a gateway's bundle from where the office puts it to where spa-server looks.
//
// It has no key and no privilege, and checks only what saves it work: the gateway checks everything. While the source
// is away, what was there stays.
package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"sallyport/keys/place"
	"sallyport/spa/fleet"
)

// A Source has a gateway's bundle.
type Source interface {
	// Follow calls take with the bytes that are there and with each later version, until ctx ends. They may be
	// anything. If take returns an error, it calls take again later, even if nothing has changed. It reports trouble
	// and goes on.
	Follow(ctx context.Context, take func([]byte) error, trouble func(error))
}

// Agent copies a bundle from its source to a file.
type Agent struct {
	Source  Source
	Gateway string
	To      string // the file
	Log     *slog.Logger

	troubled string // the last trouble that was logged
}

// Run copies each new bundle until ctx ends.
func (a *Agent) Run(ctx context.Context) {
	a.Source.Follow(ctx, func(text []byte) error {
		err := a.take(text)
		a.note(err)
		return err
	}, a.note)
}

// note logs trouble once, and its end.
func (a *Agent) note(err error) {
	switch {
	case err != nil && err.Error() != a.troubled:
		a.troubled = err.Error()
		a.Log.Warn("no new bundle: the gateway keeps what it has", "error", err)
	case err == nil && a.troubled != "":
		a.Log.Info("bundles come again")
		a.troubled = ""
	}
}

// take puts a bundle into its place, if it says that it is for this gateway. It does not compare serials, because it
// cannot verify them: a forged one would keep all later bundles away. The gateway does, and reports an older one.
func (a *Agent) take(text []byte) error {
	b, err := fleet.Parse(text)
	if err != nil {
		return fmt.Errorf("what the source has is %w", err)
	}
	if b.Gateway != a.Gateway {
		return fmt.Errorf("the source has the bundle of %s, and this is %s", b.Gateway, a.Gateway)
	}
	was, err := place.ReadFile(a.To, fleet.MaxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Equal(was, text) {
		return nil
	}
	if err := place.Write(a.To, text, place.EitherWay, place.ForAll); err != nil {
		return err
	}
	a.Log.Info("bundle in place", "serial", b.Serial, "issued", b.Issued, "bytes", len(text), "file", a.To)
	return nil
}

// ErrRoot means that an agent was started as root.
var ErrRoot = errors.New("an agent needs no privilege, and does not run as root")
