package main

import (
	"errors"
	"fmt"
	"io/fs"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/place"
	"sallyport/spa/config"
)

// load reads the configuration. Where there is none it says how one is made.
func load(dir string) (*config.Config, error) {
	c, err := config.Load(dir)
	return c, cli.Unread(err, "spa-keygen")
}

// absent adds what to do where a client's file is not there, or cannot be written for want of space.
func absent(err error, name string) error {
	if errors.Is(err, place.ErrFull) {
		return cli.Fail(err, fmt.Sprintf("nothing was changed; make space, or shut %s out now: spa-keygen revoke %[1]s",
			name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return cli.Fail(fmt.Errorf("there is no client %s: %w", name, err), "list the clients: spa-keygen list")
	}
	return denied(err)
}

// denied adds what to do where the files are not for who asks.
func denied(err error) error { return cli.AsRoot(err, "spa-keygen") }
