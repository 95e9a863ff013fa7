package firewall

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"golang.org/x/sys/unix"
)

// choose makes the backend that the configuration names. Auto is nftables where the kernel
// has what its guard needs, else iptables.
func choose(c *Config, log *slog.Logger) (backend, error) {
	switch c.Backend {
	case BackendNftables:
		return newNftables(c)
	case BackendIptables:
		return newIptables(c, log)
	}
	b, err := newNftables(c)
	if err == nil {
		c.why = "; chosen automatically"
		return b, nil
	}
	return insteadOfNftables(err, c, log)
}

// insteadOfNftables makes the other backend, for a reason. Neither for want of a privilege,
// nor of the state directory or of sets to admit to, is another backend better.
func insteadOfNftables(why error, c *Config, log *slog.Logger) (backend, error) {
	if _, file := errors.AsType[*fs.PathError](why); file || errors.Is(why, unix.EPERM) || c.Mode != Guard {
		return nil, why
	}
	b, err := newIptables(c, log)
	if err != nil {
		return nil, fmt.Errorf("%w; nor is iptables of use: %w", why, err)
	}
	c.why = fmt.Sprintf("; chosen automatically, because nftables cannot be used: %v", why)
	return b, nil
}
