package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/agent"
	"sallyport/spa/fleet/etcd"
	"sallyport/spa/fleet/office"
)

// target is what flags say about where bundles are published.
type target struct{ to, ca, cert, key string }

func (p *target) flags(cmd *cobra.Command, what string) {
	cmd.Flags().StringVar(&p.to, "to", "", "`DIR` "+what+", or etcd://HOST:PORT,HOST:PORT")
	cmd.MarkFlagDirname("to")
	cmd.Flags().StringVar(&p.ca, "ca", "", "`FILE` with the authorities for etcd's certificate (default: the system's)")
	cmd.Flags().StringVar(&p.cert, "cert", "", "`FILE` with this administrator's certificate for etcd")
	cmd.Flags().StringVar(&p.key, "key", "", "`FILE` with the key of --cert")
}

// destination is where bundles are published.
type destination struct {
	office.Destination
	path, name string // for messages, and as the office names it
	close      func() error
}

// open opens the destination that the flags name, or that of the last publish.
func (a *app) open(o *office.Office, p target) (*destination, error) {
	path, name, err := a.name(o, p.to)
	if err != nil {
		return nil, err
	}
	hosts, ok := strings.CutPrefix(path, "etcd://")
	if !ok && strings.Contains(path, "://") {
		return nil, cli.Misuse(fmt.Errorf("--to %s: bundles go into a directory or into etcd", path),
			"spa-fleet publish --to etcd://HOST:PORT")
	}
	if !ok {
		return &destination{office.Directory(path), path, name, func() error { return nil }}, nil
	}
	if p.cert == "" || p.key == "" {
		return nil, cli.Misuse(
			errors.New("etcd identifies administrators by certificate: --cert and --key are required"),
			"spa-fleet publish --to "+path+" --ca ca.pem --cert me.pem --key me.key")
	}
	secure, err := agent.TLS(p.ca, p.cert, p.key)
	if err != nil {
		return nil, err
	}
	store, err := etcd.Open(etcd.Config{Endpoints: agent.Endpoints(hosts), TLS: secure, Fleet: o.Fleet})
	if err != nil {
		return nil, err
	}
	return &destination{inEtcd{store}, path, name, store.Close}, nil
}

// name returns the path or the address of the bundles, and how the office names it.
func (a *app) name(o *office.Office, to string) (path, name string, err error) {
	if to == "" {
		if o.Published.To == "" {
			return "", "", cli.Misuse(errors.New("the first publish needs --to"), "spa-fleet publish --to DIR")
		}
		return o.Destination(), o.Published.To, nil
	}
	if filepath.IsAbs(to) || strings.Contains(to, "://") {
		return to, to, nil
	}
	base, err := filepath.Abs(a.dir)
	if err != nil {
		return "", "", err
	}
	full, err := filepath.Abs(to)
	if err != nil {
		return "", "", err
	}
	if name, err = filepath.Rel(base, full); err != nil {
		return full, full, nil // on another drive
	}
	return to, filepath.ToSlash(name), nil
}

// inEtcd is etcd as a destination.
type inEtcd struct{ *etcd.Store }

// Lock does nothing: Put finds out whether another publish came first.
func (inEtcd) Lock() (unlock func(), err error) { return func() {}, nil }

// Put implements office.Destination.
func (s inEtcd) Put(ctx context.Context, bundles iter.Seq2[*fleet.Bundle, error], known int64) error {
	err := s.Publish(ctx, bundles, known)
	if errors.Is(err, etcd.ErrNewer) {
		return fmt.Errorf("%w: %w", office.ErrNewer, err)
	}
	return err
}

// Where implements office.Destination.
func (s inEtcd) Where(gateway string) string { return "etcd's bundle of " + gateway }
