package stage

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// Rehearsal returns a command that runs this test's program under another name, for its TestMain to see, with the
// story's files in an empty directory.
func Rehearsal(t testing.TB, name string) (cmd *exec.Cmd, files string) {
	t.Helper()
	lab.NeedNamespaces(t)
	cmd = exec.Command("/proc/self/exe")
	cmd.Args = []string{name}
	files = t.TempDir()
	for _, dir := range []string{files, filepath.Dir(files)} {
		lab.Must(t, os.Chmod(dir, 0o755))
	}
	cmd.Env = append(os.Environ(), "TMPDIR="+files)
	return cmd, files
}

// Told runs a command from Rehearsal, and checks that it succeeds, says all of the words and leaves nothing behind. It
// returns its output.
func Told(t testing.TB, cmd *exec.Cmd, files string, words ...string) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range append(words, "Every step was as promised.") {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q", want)
		}
	}
	for _, never := range []string{"BAD", "\x1b"} {
		if strings.Contains(string(out), never) {
			t.Errorf("there is %q", never)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
	NothingLeft(t, files)
	return string(out)
}

// NothingLeft checks that no file of the story is left, and no process that has one open.
func NothingLeft(t testing.TB, files string) {
	t.Helper()
	left, err := os.ReadDir(files)
	if err != nil || len(left) != 0 {
		t.Errorf("files left: %v, %v", left, err)
	}
	processes := lab.Value(filepath.Glob("/proc/[0-9]*/exe"))(t)
	for _, link := range processes {
		program, err := os.Readlink(link)
		if err == nil && strings.HasPrefix(program, files) {
			t.Errorf("process left: %s %s", filepath.Dir(link), program)
		}
	}
}
