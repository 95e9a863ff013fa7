package setup

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// TestForgedSettings: whatever the file contained before, LastGood finds the settings that were saved.
func TestForgedSettings(t *testing.T) {
	for _, number := range []uint64{0, 1, 2, lastGoodMost, lastGoodMost + 1, math.MaxUint64 - 1, math.MaxUint64} {
		for place := range int64(2) {
			c := loadedAgain(t)
			forged := writing{number: number, at: now, dir: c.Dir,
				text: []byte(strings.ReplaceAll(string(c.Text()), "tcp/22", "tcp/2"))}
			file, err := os.OpenFile(filepath.Join(c.State, SettingsFile), os.O_RDWR|os.O_CREATE, 0o600)
			if err == nil {
				_, err = file.WriteAt(forged.encode(), place*lastGoodSize)
			}
			lab.Must(t, errors.Join(err, file.Close(), SaveSettings(c, now)))
			if number == lastGoodMost {
				continue // the server saves far less often
			}
			got, _, err := LastGood(c.Dir)
			if err != nil || string(got.Text()) != string(c.Text()) {
				t.Errorf("number %d at place %d: %v, found\n%s", number, place, err, textOf(got))
			}
		}
	}
}

// loadedAgain returns the settings of a new gateway, with its state beside them.
func loadedAgain(t *testing.T) *config.Config {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "etc")
	return loadedOf(t, dir, dir)
}

// loadedOf returns the settings of a new gateway with these directories.
func loadedOf(t *testing.T, dir, state string) *config.Config {
	t.Helper()
	c := config.Default(dir)
	c.Name, c.Address, c.ServerID, c.State = "gw", "192.0.2.1", keys.NewServerID(), state
	lab.Must(t, Init(c, now))
	read := lab.Value(config.Load(c.Dir))(t)
	return read
}

func textOf(c *config.Config) string {
	if c == nil {
		return ""
	}
	return string(c.Text())
}

// lastNumber is the number of the newest settings that are found.
func lastNumber(t *testing.T, c *config.Config) uint64 {
	t.Helper()
	g := lab.Value(openLastGood(c.State))(t)
	defer g.Close()
	return g.last.number
}

// TestSettingsInTurn: each change of the settings overwrites the copy before the last, and unchanged settings are not
// written. The file never grows.
func TestSettingsInTurn(t *testing.T) {
	c := loadedAgain(t)
	path := filepath.Join(c.State, SettingsFile)
	for i, size := range []int64{0, 1, 2*lastGoodSize - 1, 2 * lastGoodSize, 2*lastGoodSize + 1} {
		lab.Must(t, errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o600), os.Truncate(path, size)))
		if err := SaveSettings(c, now); err != nil {
			t.Fatalf("a file of %d bytes: %v", size, err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != max(size, 2*lastGoodSize) {
			t.Errorf("of %d bytes were made %d, %v", size, info.Size(), err)
		}
		other := *c
		other.Dir = t.TempDir()
		for n, save := range []*config.Config{c, c, &other, &other, c} {
			lab.Must(t, SaveSettings(save, now.Add(time.Duration(n)*time.Hour)))
			if got, want := lastNumber(t, c), []uint64{1, 1, 2, 2, 3}[n]; got != want {
				t.Errorf("file %d, save %d: it is writing number %d, want %d", i, n, got, want)
			}
		}
		if _, at, err := LastGood(c.Dir); err != nil || !at.Equal(now.Add(4*time.Hour)) {
			t.Errorf("found: of %v, %v", at, err)
		}
	}
	c.Dir = strings.Repeat("/x", lastGoodSize)
	if err := SaveSettings(c, now); err == nil || lastNumber(t, c) != 3 {
		t.Errorf("what has no room in its place: got %v", err)
	}
}

// TestDamagedSettings: if any byte of a copy changes, or the file ends anywhere, the copy before it is found, if that
// is intact.
func TestDamagedSettings(t *testing.T) {
	c := loadedAgain(t)
	file := lab.Value(os.OpenFile(filepath.Join(c.State, SettingsFile), os.O_RDWR|os.O_CREATE, 0o600))(t)
	defer file.Close()
	for _, number := range []uint64{1, 2} {
		older := writing{number, now, c.Dir, append([]byte("# older\n"), c.Text()...)}
		newer := writing{number + 1, now.Add(time.Hour), c.Dir, c.Text()}
		text, start := newer.encode(), int64(newer.number%2)*lastGoodSize
		put := func(b []byte, size int64) {
			t.Helper()
			_, err := file.WriteAt(older.encode(), int64(older.number%2)*lastGoodSize)
			_, err2 := file.WriteAt(b, start)
			lab.Must(t, errors.Join(err, err2, file.Truncate(size)))
		}
		found := func(what string, at int, want *writing) {
			t.Helper()
			got, when, err := LastGood(c.Dir)
			switch {
			case want == nil && !errors.Is(err, ErrNeverGood):
				t.Errorf("%s %d of writing %d: found %q, %v, want nothing", what, at, newer.number, textOf(got), err)
			case want != nil && (err != nil || textOf(got) != string(want.text) || !when.Equal(want.at)):
				t.Errorf("%s %d of writing %d: found %q of %v, %v, want %q", what, at, newer.number,
					textOf(got), when, err, want.text)
			}
		}
		put(text, 2*lastGoodSize)
		found("no byte", 0, &newer)
		for at := range lastGoodHead + len(c.Dir) + 10 {
			damaged := bytes.Clone(text)
			damaged[at] ^= 0xff
			put(damaged, 2*lastGoodSize)
			found("byte", at, &older)
			put(text, start+int64(at))
			if start == 0 { // both are cut
				found("cut at byte", at, nil)
				continue
			}
			found("cut at byte", at, &older)
		}
	}
}

// TestTrustedSettings: settings that another user could write, or that are not a regular file, are not used. The next
// save replaces them, and changes nothing that they link to.
func TestTrustedSettings(t *testing.T) {
	lab.NeedRoot(t)
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	for name, test := range map[string]struct {
		spoil   func(path string) error
		trusted bool
	}{
		"as it was":              {func(string) error { return nil }, true},
		"others can read it":     {func(path string) error { return os.Chmod(path, 0o644) }, true},
		"its group can write it": {func(path string) error { return os.Chmod(path, 0o620) }, false},
		"others can write it":    {func(path string) error { return os.Chmod(path, 0o602) }, false},
		"of another user":        {func(path string) error { return os.Chown(path, 4321, 0) }, false},
		"a link": {func(path string) error {
			return errors.Join(os.Rename(path, elsewhere), os.Symlink(elsewhere, path))
		}, false},
		"a link to nothing": {func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink(elsewhere+"2", path))
		}, false},
		"a file of two names": {func(path string) error { return os.Link(path, elsewhere+"3") }, false},
		"a pipe": {func(path string) error {
			return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600))
		}, false},
		"a directory": {func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
			false},
	} {
		c := loadedAgain(t)
		path := filepath.Join(c.State, SettingsFile)
		lab.Must(t, errors.Join(SaveSettings(c, now), test.spoil(path)))
		got, _, err := LastGood(c.Dir)
		if (err == nil) != test.trusted || errors.Is(err, ErrNeverGood) {
			t.Errorf("%s: found %q, %v, want it trusted: %v", name, textOf(got), err, test.trusted)
		}
		if err := SaveSettings(c, now); err != nil {
			t.Errorf("%s: saving: %v", name, err)
		}
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s: saved to %v, %v", name, info, err)
		}
		if got, _, err := LastGood(c.Dir); err != nil {
			t.Errorf("%s: saved, and found %q, %v", name, textOf(got), err)
		}
	}
	if _, err := os.Stat(elsewhere + "2"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was written by a link: %v", err)
	}
	c := loadedAgain(t)
	lab.Must(t, os.MkdirAll(filepath.Join(c.State, SettingsFile, "full"), 0o700))
	if err := SaveSettings(c, now); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("a directory with something in it: got %v", err)
	}
}

// TestSettingsElsewhere: if server.toml does not name the state directory, the program's working directory is not
// searched.
func TestSettingsElsewhere(t *testing.T) {
	c := loadedOf(t, filepath.Join(t.TempDir(), "etc"), t.TempDir())
	lab.Must(t, errors.Join(SaveSettings(c, now), os.Remove(filepath.Join(c.Dir, config.FileName)),
		os.Remove(filepath.Join(c.Dir, SettingsFile))))
	t.Chdir(c.State)
	if got, _, err := LastGood(c.Dir); !errors.Is(err, ErrNeverGood) {
		t.Errorf("found %q, %v", textOf(got), err)
	}
}

// TestSettingsOfServer: the server's user trusts its own files and root's.
func TestSettingsOfServer(t *testing.T) {
	lab.NeedRoot(t)
	c := loadedAgain(t)
	for path := c.State; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		lab.Must(t, os.Chmod(path, 0o755))
	}
	path := filepath.Join(c.State, SettingsFile)
	for owner, trusted := range map[int]bool{0: true, 4321: true, 4322: false} {
		lab.Must(t, errors.Join(SaveSettings(c, now), os.Chown(path, owner, 0), os.Chmod(path, 0o644)))
		err := lab.AsUser(t, 4321, func() error { _, err := lastWriting(c.State, c.Dir); return err })
		if (err == nil) != trusted {
			t.Errorf("of user %d: %v", owner, err)
		}
	}
}

// TestSettingsOfOthers: several gateways may have used one state directory in turn: each finds its own settings, or
// none.
func TestSettingsOfOthers(t *testing.T) {
	c, other := loadedAgain(t), loadedAgain(t)
	other.State = c.State
	for n, save := range []*config.Config{c, other} {
		lab.Must(t, SaveSettings(save, now.Add(time.Duration(n)*time.Hour)))
	}
	if _, at, err := LastGood(c.Dir); err != nil || !at.Equal(now) {
		t.Errorf("its own: of %v, %v", at, err)
	}
	if err := SaveSettings(other, now); err != nil { // the same again
		t.Fatal(err)
	}
	changed := *other
	changed.Dir = t.TempDir()
	lab.Must(t, SaveSettings(&changed, now))
	if got, _, err := LastGood(c.Dir); !errors.Is(err, ErrNeverGood) {
		t.Errorf("written over by others: %q, %v", textOf(got), err)
	}
	if got, _, err := LastGood(t.TempDir()); !errors.Is(err, ErrNeverGood) {
		t.Errorf("of a gateway that there never was: %q, %v", textOf(got), err)
	}
	bad := writing{number: 9, at: now, dir: c.Dir, text: []byte("of = a newer version")}
	lab.Must(t, os.WriteFile(filepath.Join(c.State, SettingsFile), bad.encode(), 0o600))
	if got, _, err := LastGood(c.Dir); err == nil || errors.Is(err, ErrNeverGood) {
		t.Errorf("what cannot be read: %q, %v", textOf(got), err)
	}
}
