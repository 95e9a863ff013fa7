package cli

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sallyport/spa/lab"

	"github.com/spf13/cobra"
)

func TestCompleteClients(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"bob.toml", "alice.toml", "README", ".hidden.toml", "Carol.toml", "dave.toml~"} {
		lab.Must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	complete := CompleteFirst(func() []string { return ClientNames(dir) })
	if got, how := complete(nil, nil, ""); !slices.Equal(got, []string{"alice", "bob"}) ||
		how != cobra.ShellCompDirectiveNoFileComp {
		t.Errorf("got %q, %v", got, how)
	}
	if got, how := complete(nil, []string{"alice"}, ""); got != nil || how != cobra.ShellCompDirectiveNoFileComp {
		t.Errorf("a second argument: got %q, %v", got, how)
	}
	if got := ClientNames(filepath.Join(dir, "missing")); got != nil {
		t.Errorf("no directory: got %q", got)
	}
}
