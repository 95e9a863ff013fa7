//go:build unix

package keys

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// TestFullDisk: a process that may write at most 10 bytes per file tries to replace a client; the old file stays
// complete.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	c := &Client{Name: "alice", ID: 7, Key: NewKey(), Allow: []string{"ssh"}}
	if d := os.Getenv("TEST_FULL_DISK"); d != "" {
		signal.Ignore(syscall.SIGXFSZ)
		lab.Must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 10, Max: 10}))
		if err := WriteClient(d, c, false); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("replacing: got %v, want that the file is too large", err)
		}
		c.Name = "bob"
		if err := WriteClient(d, c, true); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("creating: got %v, want that the file is too large", err)
		}
		return
	}
	lab.Must(t, WriteClient(dir, c, true))
	before, _ := os.ReadFile(filepath.Join(dir, "alice.toml"))
	self := lab.Value(os.Executable())(t)
	cmd := exec.Command(self, "-test.run=^TestFullDisk$")
	cmd.Env = append(os.Environ(), "TEST_FULL_DISK="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lab.OnlyFiles(t, dir, "alice.toml")
	if after, _ := os.ReadFile(filepath.Join(dir, "alice.toml")); !bytes.Equal(before, after) {
		t.Error("the client that was there is changed")
	}
}

func TestUnwritableDirectory(t *testing.T) {
	dir := t.TempDir()
	c := &Client{Name: "alice", ID: 7, Key: NewKey(), Allow: []string{"ssh"}}
	lab.Must(t, WriteClient(dir, c, true))
	lab.Must(t, os.Chmod(dir, 0o555))
	defer os.Chmod(dir, 0o755)
	asNobody(t, func() {
		c.Name = "bob"
		if err := WriteClient(dir, c, true); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("creating: got %v, want permission denied", err)
		}
		c.Name = "alice"
		if err := WriteClient(dir, c, false); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("replacing: got %v, want permission denied", err)
		}
	})
	lab.OnlyFiles(t, dir, "alice.toml")
}
