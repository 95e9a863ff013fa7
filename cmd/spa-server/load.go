package main

import (
	"errors"
	"io/fs"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/config"
)

// load reads the configuration.
func load(dir string) (*config.Config, error) {
	c, err := config.Load(dir)
	return c, loadError(err)
}

// loadError adds what to do where there is no configuration, or none for who asks.
func loadError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cli.Fail(err, "spa-server init makes a gateway's files; if they are in another directory: --config DIR")
	case errors.Is(err, fs.ErrPermission):
		return cli.Fail(err, "run it as root: sudo spa-server …")
	}
	return err
}
