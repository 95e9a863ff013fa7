package main

import (
	"log/slog"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/config"
	"sallyport/spa/server/setup"
)

// load reads the configuration.
func load(dir string) (*config.Config, error) {
	c, err := config.Load(dir)
	return c, loadError(err)
}

// loadAsServer reads the configuration as the server will on a reload.
func loadAsServer(dir string, log *slog.Logger) (*config.Config, error) {
	c, err := setup.LoadConfig(dir, log)
	return c, loadError(err)
}

// loadError adds a hint if there is no configuration, or if the user may not read it.
func loadError(err error) error { return cli.Unread(err, "spa-server") }
