package main

import (
	"context"
	"errors"
	"testing"

	"sallyport/cmd/internal/tty"
)

// TestReadingIsInterruptible: Ctrl-C ends the wait for a token at a terminal.
func TestReadingIsInterruptible(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	never := make(chan struct{})
	defer close(never)
	reading := make(chan struct{})
	go func() {
		<-reading
		cancel()
	}()
	got, err := tty.Interruptible(ctx, func() ([]byte, error) {
		close(reading)
		<-never
		return []byte("late"), nil
	})
	if got != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("got %q, %v, want it cancelled", got, err)
	}
}
