//go:build !linux

package main

import (
	"context"

	"sallyport/examples/internal/stage"
)

func run(context.Context, *stage.Teller) error { return stage.ErrPlatform }
