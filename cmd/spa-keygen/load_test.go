package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"sallyport/cmd/internal/cli"
)

// TestWhatToDo: errors that an administrator meets on the first day say what to do.
func TestWhatToDo(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		hint string
	}{
		"not for this user": {absent(fmt.Errorf("reading: %w", fs.ErrPermission), "alice"), "as root"},
		"no such client":    {absent(fmt.Errorf("reading: %w", fs.ErrNotExist), "alice"), "spa-keygen list"},
	} {
		exit, ok := errors.AsType[*cli.Exit](test.err)
		if !ok || exit.Code != cli.Failed || !strings.Contains(exit.Hint, test.hint) {
			t.Errorf("%s: got %v, want a hint that says %q", name, test.err, test.hint)
		}
	}
	other := errors.New("something else")
	if err := absent(other, "alice"); err != other {
		t.Errorf("got %v, want the error as it is", err)
	}
}
