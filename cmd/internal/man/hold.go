package man

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// Hold fails unless the file of the page, in the test's directory, says what the page says and is free of mistakes.
// With update it writes the file first.
func (p Page) Hold(t *testing.T, update bool) {
	t.Helper()
	if update {
		lab.Must(t, os.WriteFile(p.File(), []byte(p.Roff()), 0o644))
	}
	have, err := os.ReadFile(p.File())
	if err != nil || string(have) != p.Roff() {
		t.Errorf("%s does not say what the program says (%v): run with -update and read the difference", p.File(), err)
	}
	lint(t, p)
}

// lint fails if mandoc finds a fault with a page. The date is added where packages are made.
func lint(t *testing.T, p Page) {
	t.Helper()
	lab.NeedProgram(t, "mandoc", "apt-get install mandoc")
	cmd := exec.Command("mandoc", "-T", "lint", "-W", "style")
	cmd.Stdin = strings.NewReader(strings.Replace(p.Roff(), noDate, `"2026-01-01"`, 1))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
}

// Names fails unless a text of Settings defines each key that the Go files of a pattern declare for TOML, and has
// everything of more.
func Names(t *testing.T, text, pattern string, more map[string]string) {
	t.Helper()
	tag := regexp.MustCompile("toml:\"([a-z0-9_]+)\"")
	var defined []string
	for line := range strings.Lines(text) {
		defined = append(defined, strings.Split(strings.Trim(line, "# []\n"), ".")...)
	}
	for key, said := range more {
		if !strings.Contains(text, sentence(said)) {
			t.Errorf("more is said about %s, which is not on the page", key)
		}
	}
	files := lab.Value(filepath.Glob(pattern))(t)
	if len(files) == 0 {
		t.Errorf("no files at %s", pattern)
	}
	for _, file := range files {
		source := lab.Value(os.ReadFile(file))(t)
		for _, key := range tag.FindAllSubmatch(source, -1) {
			if !slices.Contains(defined, string(key[1])) {
				t.Errorf("%s reads the setting %s, which is not on the page", file, key[1])
			}
		}
	}
}
