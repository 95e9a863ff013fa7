package main

import (
	"errors"
	"fmt"
	"io/fs"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/place"
	"sallyport/spa/config"
)

// load reads the configuration. If there is none, the hint says how to create it.
func load(dir string) (*config.Config, error) {
	c, err := config.Load(dir)
	return c, cli.Unread(err, "spa-keygen")
}

// absent adds a hint if a client's file is missing, or cannot be written on a full disk.
func absent(err error, name string) error {
	if errors.Is(err, place.ErrFull) {
		return cli.Fail(err, fmt.Sprintf("nothing was changed; free some space, or shut %s out now: spa-keygen revoke %[1]s",
			name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return cli.Fail(fmt.Errorf("there is no client %s: %w", name, err), "list the clients: spa-keygen list")
	}
	return denied(err)
}

// denied adds a hint if the user may not read the files.
func denied(err error) error { return cli.AsRoot(err, "spa-keygen") }
