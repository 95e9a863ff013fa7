package check

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestCheckNamesEachMistake: each mistake in server.toml is one finding, with its line once.
func TestCheckNamesEachMistake(t *testing.T) {
	c := initialised(t, nil, keys.Client{RequireSource: true})
	path := filepath.Join(c.Dir, config.FileName)
	file := lab.Value(os.ReadFile(path))(t)
	lab.Must(t, os.WriteFile(path, append([]byte("windwo = 1\nzone = \"Nowhere\"\n"), file...), 0o640))
	got := examine(t.Context(), c.Dir, now, quietHost())
	if len(got) != 1 || got[0].Subject != path+":1" || got[0].Text != `windwo: unknown key (did you mean "window"?)` ||
		got[0].Severity != Problem {
		t.Errorf("an unknown key: got %+v", got)
	}
	lab.Must(t, os.WriteFile(path, append([]byte("window = \"soon\"\nzone = \"Nowhere\"\n"),
		regexp.MustCompile(`(?m)^window = .*\n`).ReplaceAll(file, nil)...), 0o640))
	got = examine(t.Context(), c.Dir, now, quietHost())
	if len(got) != 2 || got[0].Subject != path+":1" || got[1].Subject != path+":2" {
		t.Errorf("two mistakes: got %+v", got)
	}
}
