package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/replay"
	"sallyport/spa/sandbox"
)

// ErrInitialized is returned if a gateway's files already exist.
var ErrInitialized = errors.New("there is already a gateway")

// Init writes a new gateway's files: server.toml, gate.key, clients/ and the journal. It overwrites nothing, and
// removes what it wrote if it fails. The state directory, if it is another one, is for the server's user alone. The
// directory itself is for the server's user: readable by it, and writable only by root.
func Init(c config.Config, now time.Time) error {
	journal := filepath.Join(c.State, config.JournalFile)
	for _, path := range []string{filepath.Join(c.Dir, config.FileName), filepath.Join(c.Dir, config.GateFile),
		filepath.Join(c.Dir, config.ClientsDir), journal} {
		switch _, err := os.Lstat(path); {
		case err == nil:
			return fmt.Errorf("%s: %w", path, ErrInitialized)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	var undo []string
	steps := []struct {
		path string
		make func(path string) error
	}{
		{filepath.Join(c.Dir, config.ClientsDir), makeDir},
		{filepath.Join(c.Dir, config.GateFile), func(path string) error { return keys.WriteGate(path, keys.NewGateKey()) }},
		{journal, func(path string) error {
			return replay.Create(path, replay.Config{Window: c.Window, LiveNonces: c.Limits.LiveNonces}, now)
		}},
		{filepath.Join(c.Dir, config.FileName), func(string) error { return config.Create(c.Dir, c) }},
	}
	_, before := os.Lstat(c.Dir)
	if err := makeDir(c.Dir); err != nil {
		return err
	}
	if errors.Is(before, fs.ErrNotExist) {
		undo = append(undo, c.Dir)
	}
	if c.State != c.Dir {
		if err := makeStateDir(c.State); err != nil {
			return err
		}
	}
	for _, step := range steps {
		if err := step.make(step.path); err != nil {
			for _, path := range slices.Backward(undo) {
				os.Remove(path)
			}
			return err
		}
		undo = append(undo, step.path)
	}
	return firewall.ForceFirstLoad(c.State)
}

// ForgetJournal removes the journal while no server is running. A new one starts with a floor a window past its start:
// earlier packets stay refused by that, unless the clock was ahead.
func ForgetJournal(c *config.Config) error {
	lock, err := Lock(c.State)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := os.Remove(filepath.Join(c.State, config.JournalFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// makeDir makes a directory that the server's user may read and only root may write, or converts an empty one. A
// directory that is not empty is left as it is.
func makeDir(path string) error {
	entries, err := os.ReadDir(path)
	if err == nil && len(entries) > 0 {
		return nil
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil // the daemon runs as the files' owner
	}
	_, gid, err := sandbox.Becomes(SystemUser)
	if err != nil {
		return fmt.Errorf("the server's user, for %s: %w", path, err)
	}
	if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o750)); err != nil {
		return fmt.Errorf("giving %s to the server's group, %d: %w", path, gid, err)
	}
	return nil
}
