package firewall

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/nftables"

	"golang.org/x/sys/unix"
)

// choose makes the backend that the configuration names. BackendAuto selects nftables where the kernel has what the
// guard needs, otherwise iptables.
func choose(name string, spec guard.Spec, log *slog.Logger) (b guard.Backend, why string, err error) {
	switch name {
	case BackendNftables:
		b, err = nftables.New(spec)
		return b, "", err
	case BackendIptables:
		b, err = iptables.New(spec, log)
		return b, "", err
	}
	if b, err = nftables.New(spec); err == nil {
		return b, "; chosen automatically", nil
	}
	return insteadOfNftables(err, spec, log)
}

// insteadOfNftables chooses iptables, unless iptables would fail for the same reason as nftables.
func insteadOfNftables(trouble error, spec guard.Spec, log *slog.Logger) (b guard.Backend, why string, err error) {
	if _, file := errors.AsType[*fs.PathError](trouble); file || errors.Is(trouble, unix.EPERM) || spec.Mode != Guard {
		return nil, "", trouble
	}
	if b, err = iptables.New(spec, log); err != nil {
		return nil, "", fmt.Errorf("%w; iptables cannot be used either: %w", trouble, err)
	}
	return b, fmt.Sprintf("; chosen automatically, because nftables cannot be used: %v", trouble), nil
}
