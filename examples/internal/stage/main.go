package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// ErrPlatform means that this system has no network namespaces.
var ErrPlatform = fmt.Errorf("network namespaces need Linux: %w", errors.ErrUnsupported)

// Main is the main function of an example: it runs it, prints its error and exits.
func Main(name string, run func(context.Context, *Teller) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, NewTeller(os.Stdout)); err != nil {
		fmt.Fprintf(os.Stderr, "%s: error: %v\n", name, err)
		os.Exit(1)
	}
}
