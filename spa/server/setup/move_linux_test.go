package setup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// stateOf is what a gateway's state directory holds in these tests. A move does not read it.
var stateOf = map[string]string{config.JournalFile: "spent packets and floors", LedgerFile: "grants",
	config.ActionsFile: "programs that are due", "audit.jsonl": "{}\n"}

// filled makes a gateway with state, whose settings were applied.
func filled(t *testing.T) *config.Config {
	t.Helper()
	c := config.Default(t.TempDir())
	c.Name, c.ServerID, c.Address = "gw", keys.NewServerID(), "gw.example.net"
	lab.Must(t, errors.Join(os.Chmod(c.Dir, 0o750), config.Create(c.Dir, c)))
	for name, text := range stateOf {
		lab.Must(t, os.WriteFile(filepath.Join(c.Dir, name), []byte(text), 0o600))
	}
	loaded := lab.Value(config.Load(c.Dir))(t)
	lab.Must(t, SaveSettings(loaded, time.Now()))
	return loaded
}

// whole returns an error unless a state directory has everything.
func whole(state string) error {
	var errs []error
	for name, want := range stateOf {
		got, err := os.ReadFile(filepath.Join(state, name))
		if err == nil && string(got) != want {
			err = fmt.Errorf("%s has %q, want %q", name, got, want)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// inForce checks that whatever settings a start would use name a directory with the whole state.
func inForce(t *testing.T, dir, what string) {
	t.Helper()
	c := lab.Value(config.Load(dir))(t)
	last, _, err := LastGood(dir)
	if err := errors.Join(err, whole(c.State), whole(last.State)); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// TestMoveKilled: a move that is killed before any step, or twice, loses nothing, and the next one ends it.
func TestMoveKilled(t *testing.T) {
	ownDefault(t)
	for n := range 7 {
		for _, again := range []int{0, 3, 4, 5} { // 4: the new server.toml is there
			c := filled(t)
			to := filepath.Join(t.TempDir(), "state")
			what := fmt.Sprintf("killed after %d steps, and after %d", n, again)
			for _, kill := range []int{n, again} {
				partly(t, c.Dir, to, kill)
				inForce(t, c.Dir, what)
			}
			lab.Must(t, moveUnlocked(c.Dir, to))
			inForce(t, c.Dir, what)
			if now := lab.Value(config.Load(c.Dir))(t); now.State != to {
				t.Errorf("%s: the state is in %s", what, now.State)
			}
			left, _ := filepath.Glob(filepath.Join(c.Dir, "*"))
			files, _ := filepath.Glob(filepath.Join(to, "*"))
			if text := strings.Join(append(left, files...), " "); strings.Contains(text, c.Dir+"/journal") ||
				strings.Contains(text, c.Dir+"/grants") || strings.Contains(text, c.Dir+"/audit") ||
				strings.Contains(text, movingFile) || strings.Contains(text, ".new") {
				t.Errorf("%s: left %v and %v", what, left, files)
			}
		}
	}
}

// partly makes the first steps of a move.
func partly(t *testing.T, dir, to string, steps int) {
	t.Helper()
	m := lab.Value(newMove(dir, to, time.Now()))(t)
	if m.next.State == m.c.State {
		return
	}
	lab.Must(t, makeStateDir(to))
	for _, step := range m.steps()[:min(steps, len(m.steps()))] {
		lab.Must(t, step())
	}
}

func moveUnlocked(dir, to string) error {
	m, err := newMove(dir, to, time.Now())
	if err != nil {
		return err
	}
	_, err = m.do()
	return err
}

// TestMoveHostile: the server's user owns the old directory, or the new one, and puts there what root must not read,
// write or wait for.
func TestMoveHostile(t *testing.T) {
	ownDefault(t)
	secret := filepath.Join(t.TempDir(), "secret")
	lab.Must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for name, plant := range map[string]func(path string) error{
		"link":      func(path string) error { return os.Symlink(secret, path) },
		"hard link": func(path string) error { return os.Link(secret, path) },
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"holes": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40))
		},
	} {
		for file := range stateOf {
			c := filled(t)
			to := filepath.Join(t.TempDir(), "state")
			path := filepath.Join(c.Dir, file)
			lab.Must(t, os.Remove(path))
			if err := plant(path); err != nil {
				t.Logf("%s: %v", name, err) // no hard link to another file system
				continue
			}
			if err := moveUnlocked(c.Dir, to); err == nil {
				t.Errorf("a %s for %s: it was moved", name, file)
			}
			if got := lab.Value(config.Load(c.Dir))(t).State; got != c.Dir {
				t.Errorf("a %s for %s: the state is in %s", name, file, got)
			}
			// In the new directory, it is replaced or refused.
			c = filled(t)
			lab.Must(t, os.MkdirAll(to, 0o700))
			for _, name := range []string{file, file + ".new", movingFile, LockFile} {
				os.RemoveAll(filepath.Join(to, name))
			}
			lab.Must(t, errors.Join(os.WriteFile(filepath.Join(to, movingFile), nil, 0o600),
				plant(filepath.Join(to, file)), plant(filepath.Join(to, file+".new"))))
			if err := moveUnlocked(c.Dir, to); err == nil {
				inForce(t, c.Dir, "a "+name+" in the new directory for "+file)
			}
		}
	}
	if got := lab.Value(os.ReadFile(secret))(t); string(got) != "secret" {
		t.Errorf("the file of root has %q", got)
	}
}

// TestMoveToAnothersDirectory: another user's directory, or its link to one of root's, gets no state.
func TestMoveToAnothersDirectory(t *testing.T) {
	ownDefault(t)
	mine := t.TempDir()
	for name, plant := range map[string]func(path string) error{
		"directory": func(path string) error { return errors.Join(os.Mkdir(path, 0o755), os.Chown(path, 65534, 65534)) },
		"link":      func(path string) error { return errors.Join(os.Symlink(mine, path), os.Lchown(path, 65534, 65534)) },
	} {
		c := filled(t)
		to := filepath.Join(t.TempDir(), "state")
		lab.Must(t, plant(to))
		if err := moveUnlocked(c.Dir, to); err == nil {
			t.Errorf("a %s of another user got the state", name)
		}
		inForce(t, c.Dir, "after a refused move")
	}
}

// TestMoveToAnothersState: a directory that has the state of another gateway is left alone.
func TestMoveToAnothersState(t *testing.T) {
	ownDefault(t)
	c, other := filled(t), filled(t)
	lab.Must(t, os.WriteFile(filepath.Join(other.Dir, config.JournalFile), []byte("other"), 0o600))
	if err := moveUnlocked(c.Dir, other.Dir); !errors.Is(err, ErrOccupied) {
		t.Errorf("got %v, want %v", err, ErrOccupied)
	}
	inForce(t, c.Dir, "after a refused move")
	if got := lab.Value(os.ReadFile(filepath.Join(other.Dir, config.JournalFile)))(t); string(got) != "other" {
		t.Errorf("the other gateway's journal has %q", got)
	}
}
