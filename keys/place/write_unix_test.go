//go:build unix

package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

func TestPlace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, step := range []struct {
		how  Placing
		text string
		want error
		left string
	}{
		{OnlyOver, "a", fs.ErrNotExist, ""},
		{OnlyNew, "b", nil, "b"},
		{OnlyNew, "c", ErrExists, "b"},
		{OnlyOver, "d", nil, "d"},
		{EitherWay, "e", nil, "e"},
	} {
		if err := Write(path, []byte(step.text), step.how, ForOwner); !errors.Is(err, step.want) {
			t.Errorf("%v: got %v, want %v", step, err, step.want)
		}
		if got, _ := os.ReadFile(path); string(got) != step.left {
			t.Errorf("%v: the file holds %q", step, got)
		}
	}
	lab.OnlyFiles(t, dir, "f")
}

// TestMoveNewNeverOverwrites covers the race that a check beforehand misses.
func TestMoveNewNeverOverwrites(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := ""
	for i := range 20 {
		wg.Go(func() {
			text := fmt.Sprint(i)
			err := Write(path, []byte(text), OnlyNew, ForOwner)
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
	lab.OnlyFiles(t, dir, "f")
}

func TestMoveNew(t *testing.T) {
	for name, move := range map[string]func(tmp, path string) error{"by link": moveNew, "without links": moveUnlinked} {
		dir := t.TempDir()
		tmp, path := filepath.Join(dir, ".tmp"), filepath.Join(dir, "f")
		for i, want := range []error{nil, ErrExists} {
			lab.Must(t, os.WriteFile(tmp, []byte{byte(i)}, 0o600))
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
		lab.OnlyFiles(t, dir, "f")
	}
}

// TestForWhom covers the rule for owners: who can read the files that root writes.
func TestForWhom(t *testing.T) {
	if os.Geteuid() != 0 {
		lab.Skip(t, lab.NotRoot)
	}
	for name, c := range map[string]struct {
		dirUID, dirGID int
		whom           Audience
		uid, gid       int
		mode           fs.FileMode
	}{
		"root's":                 {0, 0, ForService, 0, 0, 0o600},
		"root's, group spa":      {0, 998, ForService, 0, 998, 0o640},
		"the service's":          {998, 998, ForService, 0, 998, 0o640},
		"the service's uid":      {998, 0, ForService, 998, 0, 0o600},
		"no secret":              {0, 0, ForReaders, 0, 0, 0o640},
		"no secret, group spa":   {0, 998, ForReaders, 0, 998, 0o640},
		"a person's profile":     {1000, 1000, ForOwner, 1000, 1000, 0o600},
		"root's profile":         {0, 0, ForOwner, 0, 0, 0o600},
		"no secret, a person's":  {1000, 0, ForReaders, 1000, 0, 0o640},
		"a profile in the group": {0, 998, ForOwner, 0, 998, 0o600},
		"everyone's":             {0, 998, ForAll, 0, 998, 0o644},
	} {
		dir := t.TempDir()
		if err := os.Chown(dir, c.dirUID, c.dirGID); errors.Is(err, syscall.EINVAL) {
			lab.Skip(t, lab.NotRoot)
		} else if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "f")
		lab.Must(t, Write(path, nil, OnlyNew, c.whom))
		fi := lab.Value(os.Stat(path))(t)
		uid, gid, _ := ownerOf(fi)
		if uid != c.uid || gid != c.gid || fi.Mode() != c.mode {
			t.Errorf("%s: got %d:%d %o, want %d:%d %o", name, uid, gid, fi.Mode(), c.uid, c.gid, c.mode)
		}
	}
}
