package office

import (
	"context"
	"errors"
	"iter"
	"os"
	"path/filepath"

	"sallyport/keys/place"
	"sallyport/spa/fleet"
)

// A Directory is a destination in the file system: NAME.bundle for each gateway. Others may read them: they are sealed.
type Directory string

var _ Destination = Directory("")

// Lock implements Destination.
func (d Directory) Lock() (unlock func(), err error) { return place.LockAlone(string(d), patience) }

// Found implements Destination. It keeps only the readable parts: together, bundles can be larger than memory.
func (d Directory) Found(context.Context) (map[string][]byte, error) {
	if _, err := os.Stat(string(d)); err != nil {
		return nil, err
	}
	list, err := names(string(d), bundleSuffix)
	if err != nil {
		return nil, err
	}
	found := make(map[string][]byte, len(list))
	for _, name := range list {
		text, err := place.ReadFile(d.Where(name), fleet.MaxFile)
		if err != nil {
			return nil, err
		}
		found[name] = nil // damaged
		if b, err := fleet.Parse(text); err == nil {
			found[name] = b.Readable()
		}
	}
	return found, nil
}

// Taken implements Destination. They are in NAME.taken: any program may bring it from the gateway.
func (d Directory) Taken(context.Context) (map[string][]byte, error) {
	list, err := names(string(d), takenSuffix)
	if err != nil {
		return nil, err
	}
	found := make(map[string][]byte, len(list))
	for _, name := range list {
		text, err := place.ReadFile(filepath.Join(string(d), name+takenSuffix), maxFile)
		if err != nil {
			return nil, err
		}
		found[name] = text
	}
	return found, nil
}

// Put implements Destination. The lock keeps others out.
func (d Directory) Put(ctx context.Context, bundles iter.Seq2[*fleet.Bundle, error], _ int64) error {
	for b, err := range bundles {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if err := place.WriteLocked(d.Where(b.Gateway), b.Bytes(), place.EitherWay, place.ForAll); err != nil {
			return err
		}
	}
	return nil
}

// Remove implements Destination.
func (d Directory) Remove(_ context.Context, gateway string) error { return remove(d.Where(gateway)) }

// Where returns the path of a bundle.
func (d Directory) Where(gateway string) string { return bundlePath(string(d), gateway) }
