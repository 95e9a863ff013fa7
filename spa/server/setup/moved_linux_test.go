package setup

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// ownDefault gives this thread a default state directory of its own, which ends with it.
func ownDefault(t *testing.T) {
	t.Helper()
	lab.NeedRoot(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	lab.Must(t, errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", filepath.Dir(defaultState), "tmpfs", 0, "")))
}

// damages are changes that may happen to server.toml. Older is an earlier content.
var damages = map[string]func(path, text, older string) error{
	"missing":         func(path, _, _ string) error { return os.Remove(path) },
	"empty":           func(path, _, _ string) error { return os.Truncate(path, 0) },
	"unreadable":      func(path, _, _ string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	"mistake before":  func(path, text, _ string) error { return os.WriteFile(path, []byte("x =\n"+text), 0o640) },
	"mistake after":   func(path, text, _ string) error { return os.WriteFile(path, []byte(text+"\n[x"), 0o640) },
	"unknown key":     func(path, text, _ string) error { return os.WriteFile(path, []byte("x = 1\n"+text), 0o640) },
	"older, mistaken": func(path, _, older string) error { return os.WriteFile(path, []byte("x =\n"+older), 0o640) },
	"state cut off": func(path, text, _ string) error {
		return os.WriteFile(path, []byte(text[:strings.Index(text, "state = ")+12]), 0o640)
	},
}

// A mover is a gateway whose state directory is moved.
type mover struct {
	*testing.T
	dir    string
	states []string
	line   *regexp.Regexp
	taken  []string // what was taken over, the latest last
	story  []string
}

// take makes the gateway apply other settings, with a clock that may be set back.
func (m *mover) take(rng *rand.Rand) {
	m.Helper()
	state := m.states[rng.IntN(len(m.states))]
	if state != m.dir {
		lab.Must(m, os.MkdirAll(state, 0o750))
	}
	quoted := fmt.Sprintf([]string{"state = %q", "state = '%s'", "  state='%s'"}[rng.IntN(3)], state)
	text := m.line.ReplaceAllString(m.taken[0], quoted)
	if n := rng.IntN(3); n > 0 { // also the same again
		text = strings.Replace(text, `window = "30s"`, fmt.Sprintf(`window = "%ds"`, 30+rng.IntN(9)), 1)
	}
	m.story = append(m.story, quoted)
	m.write(text)
	c, err := config.Load(m.dir)
	if err == nil {
		err = SaveSettings(c, now.Add(time.Duration(rng.IntN(200)-100)*time.Hour))
	}
	if err != nil {
		m.Fatal(m.story, err)
	}
	m.taken = append(m.taken, text)
}

func (m *mover) write(text string) {
	m.Helper()
	path := filepath.Join(m.dir, config.FileName)
	lab.Must(m, errors.Join(os.RemoveAll(path), os.WriteFile(path, []byte(text), 0o640)))
}

// lawful: whatever happens to server.toml now, the settings that were applied last are found.
func (m *mover) lawful(rng *rand.Rand) {
	m.Helper()
	last := m.taken[len(m.taken)-1]
	for name, damage := range damages {
		m.write(last)
		older := m.taken[rng.IntN(len(m.taken))]
		lab.Must(m, damage(filepath.Join(m.dir, config.FileName), last, older))
		c, _, err := LastGood(m.dir)
		if err != nil || string(c.Text()) != last {
			m.Errorf("%q, then server.toml is %s: %v, and found are\n%.400s", m.story, name, err, textOf(c))
		}
	}
	m.write(last)
}

// TestStateMovedAbout: whatever happened to server.toml, the guard at boot is loaded with the settings that were
// applied last, wherever the state directory was before, and whatever the clock.
func TestStateMovedAbout(t *testing.T) {
	ownDefault(t)
	for seed := range uint64(25) {
		rng := rand.New(rand.NewPCG(seed, 0))
		dir := filepath.Join(t.TempDir(), "etc")
		c := loadedOf(t, dir, t.TempDir())
		m := &mover{T: t, dir: dir, states: []string{c.State, t.TempDir(), dir, defaultState},
			line: regexp.MustCompile(`(?m)^state = "[^"]*"`), taken: []string{string(c.Text())}}
		for range 2 + rng.IntN(4) {
			m.take(rng)
			m.lawful(rng)
		}
		for _, state := range m.states {
			if state != dir {
				os.RemoveAll(state)
			}
		}
		m.lawful(rng)
		if t.Failed() {
			return
		}
	}
}

// TestSettingsBesideReadOnly: if the directory of server.toml cannot be written, the settings are kept only in the
// state directory, unless older ones are there that would be found first.
func TestSettingsBesideReadOnly(t *testing.T) {
	ownDefault(t)
	for stale, want := range map[bool]string{false: "", true: "older ones would load the guard: rm "} {
		dir := filepath.Join(t.TempDir(), "etc")
		c := loadedOf(t, dir, t.TempDir())
		if stale {
			lab.Must(t, SaveSettings(c, now))
		}
		path := filepath.Join(dir, config.FileName)
		lab.Must(t, os.WriteFile(path, append([]byte("# new\n"), c.Text()...), 0o640))
		c, err := config.Load(dir)
		lab.Must(t, errors.Join(err, unix.Mount(dir, dir, "", unix.MS_BIND, ""),
			unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")))
		err = SaveSettings(c, now)
		if (err == nil) != (want == "") ||
			err != nil && !strings.Contains(err.Error(), want+filepath.Join(dir, SettingsFile)) {
			t.Errorf("older ones there: %v: %v", stale, err)
		}
		if got, err := lastWriting(c.State, dir); err != nil || string(got.text) != string(c.Text()) {
			t.Errorf("older ones there: %v: in the state directory: %v", stale, err)
		}
		lab.Must(t, unix.Unmount(dir, 0))
		if err := SaveSettings(c, now); err != nil {
			t.Errorf("writable again: %v", err)
		}
		if got, err := lastWriting(dir, dir); err != nil || string(got.text) != string(c.Text()) {
			t.Errorf("writable again: %v", err)
		}
	}
}
