//go:build !linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"testing"
)

// Main runs the tests unchanged: this system has no network namespaces.
func Main(m *testing.M) { os.Exit(m.Run()) }

// Reexec returns an error that wraps [errors.ErrUnsupported].
func Reexec() error {
	return fmt.Errorf("lab: network namespaces: %w", errors.ErrUnsupported)
}
