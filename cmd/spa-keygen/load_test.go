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

// TestWhatToDo: errors of an administrator's first day have a hint. Root gets no hint to become root.
func TestWhatToDo(t *testing.T) {
	type want struct {
		err  error
		hint string
	}
	tests := map[string]want{"no such client": {absent(fmt.Errorf("reading: %w", fs.ErrNotExist), "alice"),
		"spa-keygen list"}}
	denied := absent(fmt.Errorf("reading: %w", fs.ErrPermission), "alice")
	if os.Geteuid() != 0 {
		tests["not for this user"] = want{denied, "as root"}
	} else if exit, ok := errors.AsType[*cli.Exit](denied); ok {
		t.Errorf("root gets the hint %q", exit.Hint)
	}
	for name, test := range tests {
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
