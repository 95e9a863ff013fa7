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
		c.why = ", chosen because this kernel has what it needs"
		return b, nil
	}
	// Neither for want of a privilege, nor of the state directory, is another backend better.
	if _, file := errors.AsType[*fs.PathError](err); file || errors.Is(err, unix.EPERM) {
		return nil, err
	}
	instead, second := newIptables(c, log)
	if second != nil {
		return nil, fmt.Errorf("%w; nor is iptables of use: %w", err, second)
	}
	c.why = fmt.Sprintf(", chosen because nftables cannot be used (%v)", err)
	return instead, nil
}
