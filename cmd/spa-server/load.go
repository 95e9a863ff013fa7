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

// loadError adds what to do where there is no configuration.
func loadError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return cli.Fail(err, "spa-server init makes a gateway's files; if they are in another directory: --config DIR")
	}
	return err
}
