//go:build unix

package keys

import (
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sallyport/keys/place"
	"sallyport/keys/strict"
	"sallyport/spa/lab"
)

// needRoot skips a test whose set-up only root can do.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		lab.Skip(t, lab.NotRoot)
	}
}

// chown gives a file to another user, which only root can do.
func chown(t *testing.T, path string, uid, gid int) {
	t.Helper()
	if err := os.Chown(path, uid, gid); errors.Is(err, syscall.EINVAL) {
		lab.Skip(t, lab.NotRoot)
	} else if err != nil {
		t.Fatal(err)
	}
}

// TestMendWorks: the command in the error fixes the problem.
func TestMendWorks(t *testing.T) {
	dir := t.TempDir()
	c := &Client{Name: "alice", ID: 7, Key: NewKey(), Allow: []string{"ssh"}}
	lab.Must(t, WriteClient(dir, c, true))
	path := filepath.Join(dir, "alice.toml")
	for _, mode := range []fs.FileMode{0o644, 0o666, 0o660, 0o604, 0o777} {
		lab.Must(t, os.Chmod(path, mode))
		_, err := ReadClient(path)
		if !errors.Is(err, place.ErrExposed) || !strings.HasSuffix(err.Error(), ": chmod 640 "+path) {
			t.Fatalf("mode %o: got %v, want the command that mends it", mode, err)
		}
	}
	lab.Must(t, os.Chmod(path, 0o640))
	_, err := ReadClient(path)
	lab.Must(t, err)
}

// TestExposedFilesAreRefused: each kind of file must have its modes.
func TestExposedFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	p := testProfile()
	lab.Must(t, errors.Join(WriteProfile(dir, p, false), WriteGate(filepath.Join(dir, "gate.key"),
		NewGateKey())))
	profile, gate := filepath.Join(dir, p.Name+Suffix), filepath.Join(dir, "gate.key")
	for path, mode := range map[string]fs.FileMode{profile: 0o640, gate: 0o644} {
		lab.Must(t, os.Chmod(path, mode))
	}
	if _, err := ReadProfile(profile); !errors.Is(err, place.ErrExposed) ||
		!strings.HasSuffix(err.Error(), "chmod 600 "+profile) {
		t.Errorf("profile: got %v", err)
	}
	if _, err := ReadGate(gate); !errors.Is(err, place.ErrExposed) || !strings.HasSuffix(err.Error(), "chmod 640 "+gate) {
		t.Errorf("gate key: got %v", err)
	}
}

func TestAnothersFileIsRefused(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	c := &Client{Name: "alice", ID: 7, Key: NewKey(), Allow: []string{"ssh"}}
	lab.Must(t, WriteClient(dir, c, true))
	path := filepath.Join(dir, "alice.toml")
	chown(t, path, 54321, 0)
	if _, err := ReadClient(path); !errors.Is(err, place.ErrExposed) || !strings.Contains(err.Error(),
		"chown root:root "+path) {
		t.Errorf("got %v, want the command that mends it", err)
	}
	chown(t, dir, 54321, 54321)
	if _, err := ReadClient(path); err != nil {
		t.Errorf("the directory's owner's: %v", err)
	}
}

func TestOddFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	c := &Client{Name: "alice", ID: 7, Key: NewKey(), Allow: []string{"ssh"}}
	lab.Must(t, WriteClient(dir, c, true))
	link, fifo, folder, huge := filepath.Join(dir, "link.toml"), filepath.Join(dir, "fifo.toml"),
		filepath.Join(dir, "folder.toml"), filepath.Join(dir, "huge.toml")
	lab.Must(t, errors.Join(os.Symlink("alice.toml", link), syscall.Mkfifo(fifo, 0o600), os.Mkdir(folder, 0o700),
		os.WriteFile(huge, nil, 0o600), os.Truncate(huge, 1<<30)))
	registry, _ := LoadRegistry(dir)
	for path, want := range map[string]string{link: ": a symbolic link, which", fifo: "not a regular file",
		folder: "not a regular file", huge: "larger than"} {
		renamed := *c
		renamed.Name = strings.TrimSuffix(filepath.Base(path), Suffix)
		_, err := ReadClient(path)
		_, byRoot := registry.Reload(renamed.Name)
		for _, err := range []error{err, byRoot} {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
				t.Errorf("got %v, want %s of %s", err, want, path)
			}
		}
		if err := WriteClient(dir, &renamed, false); path != huge && err == nil {
			t.Errorf("%s was replaced", path)
		}
	}
	var f struct{}
	if _, err := strict.DecodeFile(fifo, 99, &f); err == nil {
		t.Error("DecodeFile took a FIFO")
	}
}

// TestServersOwn: if the owner's group is the directory's group, the file counts as the server's own.
func TestServersOwn(t *testing.T) {
	needRoot(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		lab.Skip(t, "needs the user nobody")
	}
	uid, err1 := strconv.Atoi(nobody.Uid)
	gid, err2 := strconv.Atoi(nobody.Gid)
	lab.Must(t, errors.Join(err1, err2))
	dir := t.TempDir()
	lab.Must(t, WriteClient(dir, &Client{Name: "alice", ID: 7, Key: NewKey(), Allow: []string{"ssh"}}, true))
	path := filepath.Join(dir, "alice.toml")
	chown(t, path, uid, gid)
	if _, err := ReadClient(path); !errors.Is(err, place.ErrExposed) {
		t.Errorf("in a directory of root's group: %v", err)
	}
	chown(t, dir, 0, gid)
	if _, err := ReadClient(path); err != nil {
		t.Error(err)
	}
}

// TestReadableByTheServer: root refuses a file that the server's user cannot read, and the error has the command that
// fixes it.
func TestReadableByTheServer(t *testing.T) {
	needRoot(t)
	const spa = 54321
	dir := t.TempDir()
	lab.Must(t, WriteClient(dir, &Client{Name: "alice", ID: 7, Key: NewKey(), Allow: []string{"ssh"}}, true))
	path := filepath.Join(dir, "alice.toml")
	chown(t, dir, 0, spa)
	_, err := ReadClient(path)
	if !errors.Is(err, place.ErrUnreadable) || !errors.Is(err, fs.ErrPermission) || !strings.HasSuffix(err.Error(),
		": chown root:54321 "+path+" && chmod 640 "+path) {
		t.Fatalf("got %v, want the command that mends it", err)
	}
	if _, err := ChangeClient(dir, "alice", func(*Client) error { return nil }); err != nil {
		t.Errorf("changing it: %v", err) // changing it hands it over: a revocation must not wait for that
	}
	if _, err := ReadClient(path); err != nil {
		t.Errorf("after it was written: %v", err)
	}
}
