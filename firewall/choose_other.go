//go:build !linux

package firewall

import "log/slog"

func choose(c *Config, _ *slog.Logger) (backend, error) { return newNftables(c) }
