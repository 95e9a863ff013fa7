//go:build unix

package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

func TestPlace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, step := range []struct {
		how  placing
		text string
		want error
		left string
	}{
		{onlyOver, "a", fs.ErrNotExist, ""},
		{onlyNew, "b", nil, "b"},
		{onlyNew, "c", ErrExists, "b"},
		{onlyOver, "d", nil, "d"},
		{eitherWay, "e", nil, "e"},
	} {
		if err := place(path, []byte(step.text), step.how, forOwner); !errors.Is(err, step.want) {
			t.Errorf("%v: got %v, want %v", step, err, step.want)
		}
		if got, _ := os.ReadFile(path); string(got) != step.left {
			t.Errorf("%v: the file holds %q", step, got)
		}
	}
	onlyFiles(t, dir, "f")
}

// TestMoveNewNeverOverwrites is the race that asking first does not see.
func TestMoveNewNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := ""
	for i := range 20 {
		wg.Go(func() {
			text := fmt.Sprint(i)
			err := place(path, []byte(text), onlyNew, forOwner)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && won != "" {
				t.Error("two writers made the file")
			}
			if err == nil {
				won = text
			} else if !errors.Is(err, ErrExists) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, _ := os.ReadFile(path); string(got) != won {
		t.Errorf("the file holds %q, want %q", got, won)
	}
	onlyFiles(t, dir, "f")
}

func TestMoveNew(t *testing.T) {
	for name, move := range map[string]func(tmp, path string) error{"by link": moveNew, "without links": moveUnlinked} {
		dir := t.TempDir()
		tmp, path := filepath.Join(dir, ".tmp"), filepath.Join(dir, "f")
		for i, want := range []error{nil, ErrExists} {
			if err := os.WriteFile(tmp, []byte{byte(i)}, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := move(tmp, path); !errors.Is(err, want) {
				t.Errorf("%s: got %v, want %v", name, err, want)
			}
		}
		if got, _ := os.ReadFile(path); len(got) != 1 || got[0] != 0 {
			t.Errorf("%s: the file holds %v", name, got)
		}
		os.Remove(tmp)
		if err := move(tmp, filepath.Join(dir, "g")); err == nil {
			t.Errorf("%s: moved nothing", name)
		}
		if err := move(path, filepath.Join(dir, "none", "g")); err == nil {
			t.Errorf("%s: moved to nowhere", name)
		}
		onlyFiles(t, dir, "f")
	}
}

// TestFullDisk lets a process that may write no more than 10 bytes a file try to replace
// a client: what was there stays, whole.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	c := &Client{Name: "alice", ID: 7, Key: NewKey(), Allow: []string{"ssh"}}
	if d := os.Getenv("TEST_FULL_DISK"); d != "" {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 10, Max: 10}); err != nil {
			t.Fatal(err)
		}
		if err := WriteClient(d, c, false); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("replacing: got %v, want that the file is too large", err)
		}
		c.Name = "bob"
		if err := WriteClient(d, c, true); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("creating: got %v, want that the file is too large", err)
		}
		return
	}
	if err := WriteClient(dir, c, true); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(dir, "alice.toml"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestFullDisk$")
	cmd.Env = append(os.Environ(), "TEST_FULL_DISK="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	onlyFiles(t, dir, "alice.toml")
	if after, _ := os.ReadFile(filepath.Join(dir, "alice.toml")); !bytes.Equal(before, after) {
		t.Error("the client that was there is changed")
	}
}

func TestUnwritableDirectory(t *testing.T) {
	dir := t.TempDir()
	c := &Client{Name: "alice", ID: 7, Key: NewKey(), Allow: []string{"ssh"}}
	if err := WriteClient(dir, c, true); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
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
	onlyFiles(t, dir, "alice.toml")
}

// TestForWhom is the rule of owners: who can read what root writes.
func TestForWhom(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		dirUID, dirGID int
		whom           audience
		uid, gid       int
		mode           fs.FileMode
	}{
		"root's":                 {0, 0, forService, 0, 0, 0o600},
		"root's, group spa":      {0, 998, forService, 0, 998, 0o640},
		"the service's":          {998, 998, forService, 0, 998, 0o640},
		"the service's uid":      {998, 0, forService, 998, 0, 0o600},
		"no secret":              {0, 0, forReaders, 0, 0, 0o640},
		"no secret, group spa":   {0, 998, forReaders, 0, 998, 0o640},
		"a person's profile":     {1000, 1000, forOwner, 1000, 1000, 0o600},
		"root's profile":         {0, 0, forOwner, 0, 0, 0o600},
		"no secret, a person's":  {1000, 0, forReaders, 1000, 0, 0o640},
		"a profile in the group": {0, 998, forOwner, 0, 998, 0o600},
	} {
		dir := t.TempDir()
		chown(t, dir, c.dirUID, c.dirGID)
		path := filepath.Join(dir, "f")
		if err := place(path, nil, onlyNew, c.whom); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		uid, gid, _ := ownerOf(fi)
		if uid != c.uid || gid != c.gid || fi.Mode() != c.mode {
			t.Errorf("%s: got %d:%d %o, want %d:%d %o", name, uid, gid, fi.Mode(), c.uid, c.gid, c.mode)
		}
	}
}
