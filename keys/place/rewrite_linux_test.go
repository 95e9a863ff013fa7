package place

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// TestRewriteOfAnother: if something else has replaced the file that was read, such as a link to a file of root, it is
// not written to.
func TestRewriteOfAnother(t *testing.T) {
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "alice.toml"), filepath.Join(dir, "victim")
	before, after := []byte("alice\n"), []byte("revoked\n")
	for _, text := range []string{"victim\n", "alice\nand more\n", ""} {
		lab.Must(t, errors.Join(os.WriteFile(victim, []byte(text), 0o600), os.Link(victim, path)))
		if err := rewrite(path, before, after); err == nil {
			t.Errorf("%q was written to", text)
		}
		if now, err := os.ReadFile(victim); err != nil || string(now) != text {
			t.Errorf("got %q (%v), want %q", now, err, text)
		}
		lab.Must(t, os.Remove(path))
	}
}

// TestRewrite: a shorter text replaces the whole of the previous one, and links are not followed.
func TestRewrite(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "alice.toml"), filepath.Join(dir, "link.toml")
	before, after := []byte("alice, and a previous key\n"), []byte("alice\n")
	lab.Must(t, errors.Join(os.WriteFile(path, before, 0o600), os.Symlink(path, link)))
	if err := rewrite(link, before, after); err == nil {
		t.Error("a link was followed")
	}
	err := rewrite(path, before, after)
	if now, readErr := os.ReadFile(path); err != nil || readErr != nil || !bytes.Equal(now, after) {
		t.Errorf("got %q (%v, %v)", now, err, readErr)
	}
	for _, err := range []error{syscall.ENOSPC, syscall.EDQUOT} {
		if !isFull(&os.PathError{Op: "write", Path: path, Err: err}) {
			t.Errorf("%v is not taken for want of space", err)
		}
	}
}
