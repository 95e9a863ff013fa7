package setup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

const spaID = 64123 // the user and group spa of these tests

// ownAccounts gives this thread a user spa and a network of its own, beside a default state directory.
func ownAccounts(t *testing.T) {
	t.Helper()
	ownDefault(t)
	lab.Must(t, unix.Unshare(unix.CLONE_NEWNET))
	for path, text := range map[string]string{
		"/etc/passwd": fmt.Sprintf("root:x:0:0::/root:/bin/sh\n%s:x:%d:%d::/:/bin/false\n", SystemUser, spaID, spaID),
		"/etc/group":  fmt.Sprintf("root:x:0:\n%s:x:%d:\n", SystemUser, spaID),
	} {
		own := filepath.Join(t.TempDir(), "own")
		lab.Must(t, errors.Join(os.WriteFile(own, []byte(text), 0o644), unix.Mount(own, path, "", unix.MS_BIND, "")))
	}
}

// TestPrepareBelievesRoot: a user who can change server.toml cannot make root give away the files that it names.
func TestPrepareBelievesRoot(t *testing.T) {
	ownAccounts(t)
	for name, weaken := range map[string]func(dir, file string) error{
		"root's":           func(string, string) error { return nil },
		"another's file":   func(_, file string) error { return os.Chown(file, spaID, spaID) },
		"a writable file":  func(_, file string) error { return os.Chmod(file, 0o660) },
		"another's dir":    func(dir, _ string) error { return os.Chown(dir, spaID, spaID) },
		"lost, and so dir": func(dir, file string) error { return errors.Join(os.Chown(dir, spaID, spaID), os.Remove(file)) },
		"a link": func(_, file string) error {
			elsewhere := filepath.Join(t.TempDir(), "server.toml")
			return errors.Join(os.Rename(file, elsewhere), os.Chown(filepath.Dir(elsewhere), spaID, spaID),
				os.Symlink(elsewhere, file))
		},
		"a link to nothing": func(_, file string) error {
			return errors.Join(os.Remove(file), os.Symlink(filepath.Join(t.TempDir(), "none"), file))
		},
	} {
		roots := filepath.Join(t.TempDir(), "shadow")
		lab.Must(t, os.WriteFile(roots, nil, 0o600))
		c := config.Default(t.TempDir())
		c.Name, c.ServerID, c.Address, c.Audit.File = "gw", keys.NewServerID(), "gw.example.net", roots
		lab.Must(t, errors.Join(os.Chmod(c.Dir, 0o750), config.Create(c.Dir, c)))
		lab.Must(t, SaveSettings(lab.Value(config.Load(c.Dir))(t), now))
		lock := filepath.Join(c.Dir, LockFile)
		lab.Must(t, os.WriteFile(lock, nil, 0o600))
		lab.Must(t, os.WriteFile(filepath.Join(c.Dir, config.GateFile), nil, 0o600))
		lab.Must(t, weaken(c.Dir, filepath.Join(c.Dir, config.FileName)))
		rootsDir := onlyRoots(c.Dir)
		_, err := Prepare(c.Dir)
		if beside := lab.Value(os.Stat(lock))(t).Sys().(*syscall.Stat_t).Uid == spaID; beside != rootsDir {
			t.Errorf("%s: a file beside server.toml was given: %v, want %v", name, beside, rootsDir)
		}
		key := lab.Value(os.Stat(filepath.Join(c.Dir, config.GateFile)))(t).Sys().(*syscall.Stat_t)
		if legible := key.Gid == spaID; legible != rootsDir {
			t.Errorf("%s: the gate key was made legible: %v, want %v", name, legible, rootsDir)
		}
		given := lab.Value(os.Stat(roots))(t).Sys().(*syscall.Stat_t).Uid != 0
		if name == "root's" {
			lab.Must(t, err)
			if !given {
				t.Error("the audit log was not given")
			}
		} else if given || err == nil || !strings.Contains(err.Error(), "chown root:"+SystemUser) {
			t.Errorf("%s: given %v, error %v", name, given, err)
		}
	}
}
