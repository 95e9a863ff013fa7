//go:build !linux

package main

import (
	"context"
	"errors"
	"fmt"
)

func run(context.Context, *teller) error {
	return fmt.Errorf("network namespaces need Linux: %w", errors.ErrUnsupported)
}
