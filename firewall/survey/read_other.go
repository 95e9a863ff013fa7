//go:build !linux

package survey

import (
	"context"
	"errors"
	"fmt"
)

// setReader is only needed on Linux.
type setReader interface{}

// Read returns an error that wraps [errors.ErrUnsupported].
func Read(context.Context) (*Ruleset, error) {
	return nil, fmt.Errorf("rule sets: %w", errors.ErrUnsupported)
}
