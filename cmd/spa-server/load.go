package main

import (
	"sallyport/cmd/internal/cli"
	"sallyport/spa/config"
)

// load reads the configuration.
func load(dir string) (*config.Config, error) {
	c, err := config.Load(dir)
	return c, loadError(err)
}

// loadError adds what to do where there is no configuration, or none for who asks.
func loadError(err error) error { return cli.Unread(err, "spa-server") }
