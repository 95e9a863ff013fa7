//go:build !linux

package firewall

import (
	"log/slog"
	"time"
)

func choose(c *Config, _ *slog.Logger) (backend, error) { return newNftables(c) }

func teardownAll(state string, mark func() error) (func() error, error) { return teardown(state, mark) }

func (f *Firewall) sweep(time.Time) error { return nil }
