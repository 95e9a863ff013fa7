package main

import (
	"context"
	"errors"
	"os/exec"
	"testing"
)

// TestExecuteAfterASignal: a signal between the knock and the command is not lost: nothing is run.
func TestExecuteAfterASignal(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := execute(ended, exec.Command("/nonexistent")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was cancelled", err)
	}
}
