package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"sallyport/cmd/internal/cli"
)

// TestLoadError: the error for a configuration that is missing or unreadable has a hint. Root gets no hint to become
// root.
func TestLoadError(t *testing.T) {
	causes := map[string]error{"spa-server init": fs.ErrNotExist, "as root": fs.ErrPermission}
	if os.Geteuid() == 0 {
		delete(causes, "as root")
		if exit, ok := errors.AsType[*cli.Exit](loadError(fs.ErrPermission)); ok {
			t.Errorf("root gets the hint %q", exit.Hint)
		}
	}
	for hint, cause := range causes {
		exit, ok := errors.AsType[*cli.Exit](loadError(fmt.Errorf("reading: %w", cause)))
		if !ok || exit.Code != cli.Failed || !strings.Contains(exit.Hint, hint) {
			t.Errorf("%v: got %+v, want a hint that says %q", cause, exit, hint)
		}
	}
	if err := loadError(nil); err != nil {
		t.Errorf("got %v for no error", err)
	}
}
