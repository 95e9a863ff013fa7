package config

import (
	"os"
	"path/filepath"
	"testing"

	"sallyport/spa/lab"
)

// TestStateDir: the path of a running server's socket is found even if the file has mistakes.
func TestStateDir(t *testing.T) {
	for text, want := range map[string]string{
		least:                                          ".",
		least + "state = \"/var/lib/spa\"\n":           "/var/lib/spa",
		least + "state = \"below\"\n":                  "below",
		"nonsense\nstate = \"/var/lib/spa\"\n":         "/var/lib/spa",
		"state = \"/var/lib/spa/\"\n[capture\n":        "/var/lib/spa",
		"window = 3\n  state = '/var/lib/x'\n":         "/var/lib/x",
		"x =\n  state = '/var/lib/x'\n":                "/var/lib/x",
		"x =\nstate='/var/lib/\"x\\'":                  "/var/lib/\"x\\",
		"x =\n\"state\" = \"/var/lib/\\u0041\\\"\"":    "/var/lib/A\"",
		"x =\n'state' = 'a' # \"b\"":                   "a",
		"x =\n# state = '/var/lib/x'":                  ".",
		"x =\nstate = '/var/lib/x":                     ".",
		"x =\nstate = '/var/lib/x\nstate = \"/v\"":     "/v",
		"x =\nstate = \"\"\"/var\"\"\"":                ".",
		"x =\nstate = \"\\x\"":                         ".",
		"x =\nstate = ''":                              ".",
		"x =\nstates = '/var'":                         ".",
		"version = 2\nstate = \"/var/lib/spa\"\nx = 1": "/var/lib/spa",
	} {
		dir := t.TempDir()
		lab.Must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(text), 0o640))
		if !filepath.IsAbs(want) {
			want = filepath.Join(dir, want)
		}
		if got, err := StateDir(dir); err != nil || got != want {
			t.Errorf("%q: got %s, %v, want %s", text, got, err, want)
		}
	}
	if _, err := StateDir(t.TempDir()); err == nil {
		t.Error("no file and no error")
	}
}
