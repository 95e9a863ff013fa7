package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestSee(t *testing.T) {
	NeedNamespaces(t)
	NeedOwnRoot(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"shown": "shown", "place": "the machine's own"} {
		Must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	place := filepath.Join(dir, "place")
	files := map[string]string{place: filepath.Join(dir, "shown")}

	out, err := See(exec.Command("/bin/sh", "-c", `cat "$0"; printf ", then changed" >> "$0"`, place),
		files).CombinedOutput()
	if err != nil || string(out) != "shown" {
		t.Errorf("got %q (%v), want what is shown there", out, err)
	}
	out, err = See(exec.Command("cat", place), files).CombinedOutput()
	if want := "shown, then changed"; err != nil || string(out) != want {
		t.Errorf("the second command: got %q (%v), want %q", out, err, want)
	}
	own, err := os.ReadFile(place)
	if err != nil || string(own) != "the machine's own" {
		t.Errorf("outside: got %q (%v), want nothing to have changed", own, err)
	}
	out, err = See(exec.Command("cat", place), map[string]string{place: filepath.Join(dir, "nowhere")}).CombinedOutput()
	if err == nil {
		t.Errorf("a command runs although the files for it could not be mounted: %q", out)
	}
}
