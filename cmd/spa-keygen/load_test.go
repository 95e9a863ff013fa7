package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
)

// TestWhatToDo: errors that an administrator meets on the first day say what to do.
func TestWhatToDo(t *testing.T) {
	says := func(what string, err error, hint string) {
		t.Helper()
		exit, ok := errors.AsType[*cli.Exit](err)
		if !ok || exit.Code != cli.Failed || !strings.Contains(exit.Hint, hint) {
			t.Errorf("%s: got %v, want a hint that says %q", what, err, hint)
		}
	}
	says("no such client", absent(fmt.Errorf("reading: %w", fs.ErrNotExist), "alice"), "spa-keygen list")
	says("no space", absent(fmt.Errorf("writing: %w", keys.ErrFull), "alice"), "spa-keygen revoke alice")
	denied := absent(fmt.Errorf("reading: %w", fs.ErrPermission), "alice")
	if _, hinted := errors.AsType[*cli.Exit](denied); os.Geteuid() == 0 && hinted {
		t.Errorf("root: got %v, want no hint to be root", denied)
	} else if os.Geteuid() != 0 {
		says("not for this user", denied, "as root")
	}
	other := errors.New("something else")
	if err := absent(other, "alice"); err != other {
		t.Errorf("got %v, want the error as it is", err)
	}
}
