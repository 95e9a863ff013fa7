package keys

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/place"
	"sallyport/spa/lab"
)

// TestFull: on a full file system, of each kind, revoking a client and replacing its key work in place; comments, owner
// and mode stay. A change that does not fit changes nothing.
func TestFull(t *testing.T) {
	needRoot(t)
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir := small(t, kind)
			long := strings.Repeat("# where it stands\n", 4096/18-14) // the client is near the end of a block
			for name, comment := range map[string]string{"alice": "# her laptop\n", "bob": "# his\n", "carol": long} {
				put(t, dir, client(name, ID(len(name))))
				add(t, filepath.Join(dir, name+Suffix), comment)
			}
			lab.Must(t, lab.FillDisk(filepath.Join(dir, "ballast")))
			if err := WriteClient(dir, client("dave", 9), true); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("a new client: %v, want no space", err)
			}

			at := time.Now().UTC().Truncate(time.Second)
			info := lab.Value(os.Stat(filepath.Join(dir, "alice.toml")))(t)
			if _, err := ChangeClient(dir, "alice", func(c *Client) error { c.Revoked = at; return nil }); err != nil {
				t.Fatalf("revoking: %v", err)
			}
			if c, err := ReadClient(filepath.Join(dir, "alice.toml")); err != nil || !c.Revoked.Equal(at) {
				t.Errorf("got %+v, %v, want alice to be revoked", c, err)
			}
			text, err := os.ReadFile(filepath.Join(dir, "alice.toml"))
			after, statErr := os.Stat(filepath.Join(dir, "alice.toml"))
			if err != nil || statErr != nil || !strings.Contains(string(text), "# her laptop\n") || after.Mode() != info.Mode() {
				t.Errorf("got %s (%v, %v, %v)", text, after.Mode(), err, statErr)
			}

			var key Key
			if _, err := ChangeClient(dir, "bob", func(c *Client) error { c.Rotate(at); key = c.Key; return nil }); err != nil {
				t.Fatalf("rotating: %v", err)
			}
			if c, err := ReadClient(filepath.Join(dir, "bob.toml")); err != nil || !c.Key.Equal(key) {
				t.Errorf("got %+v, %v, want bob's new key", c, err)
			}

			carol := filepath.Join(dir, "carol.toml")
			before := lab.Value(os.ReadFile(carol))(t)
			_, err = ChangeClient(dir, "carol", func(c *Client) error { c.Rotate(at); return nil })
			if now, readErr := os.ReadFile(carol); !errors.Is(err, place.ErrFull) || readErr != nil ||
				!bytes.Equal(now, before) {
				t.Errorf("what does not fit: %v, and the file has changed: %v (%v)", err, !bytes.Equal(now, before), readErr)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) > 6 { // lost+found and leftovers for the next sweep
				t.Errorf("left behind: %v (%v)", entries, err)
			}
		})
	}
}

// small mounts a small file system.
func small(t *testing.T, kind string) string {
	t.Helper()
	if kind == "ext4" {
		return lab.NewDisk(t, "2M").Dir
	}
	dir := t.TempDir()
	lab.Must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { lab.Must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

func add(t *testing.T, path, text string) {
	t.Helper()
	f := lab.Value(os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0))(t)
	defer f.Close()
	_, err := f.WriteString(text)
	lab.Must(t, err)
}
