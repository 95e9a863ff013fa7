package setup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/firewall"
	"sallyport/keys/place"
	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/recovery"
	"sallyport/spa/server/control"
)

// movingFile marks a state directory that is being filled: what is in it is a copy, and may be replaced.
const movingFile = "moving"

// ErrOccupied is returned if a directory already has the state of a gateway.
var ErrOccupied = errors.New("there is already the state of a gateway")

// move moves the state to another directory. Until server.toml names the new directory the state is in the old one, and
// what is in the new one are copies. From then on it is in the new one, and what is in the old one are leftovers. So it
// may be killed at any instruction, and is then called again.
type move struct {
	c    *config.Config
	text []byte // server.toml with the new directory
	next *config.Config
	now  time.Time
}

// MoveState moves the state of the gateway in dir to another directory, with grants, spent packets, floors and the
// audit log, and writes that into server.toml. No server may run. False: the state was there already.
func MoveState(dir, to string, now time.Time) (moved bool, err error) {
	m, err := newMove(dir, to, now)
	if err != nil {
		return false, err
	}
	if m.next.State == m.c.State { // also while the server runs
		return false, m.finish()
	}
	lock, err := Lock(m.c.State)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	return m.do()
}

func newMove(dir, to string, now time.Time) (*move, error) {
	c, err := config.Load(dir)
	if err != nil {
		return nil, err
	}
	m := &move{c: c, now: now}
	if m.text, err = config.WithState(c.Dir, c.Text(), to); err != nil {
		return nil, err
	}
	m.next, err = config.Parse(c.Dir, filepath.Join(c.Dir, config.FileName), m.text)
	return m, err
}

// do moves for a caller that has the lock of the old directory.
func (m *move) do() (moved bool, err error) {
	to := m.next.State
	if to == m.c.State {
		return false, m.finish()
	}
	if err := makeStateDir(to); err != nil {
		return false, err
	}
	lock, err := lockFile(to)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	for _, step := range m.steps() {
		if err := step(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// steps returns the steps of the move, for which both directories are locked.
func (m *move) steps() []func() error {
	return []func() error{m.mark, m.copyAll, m.keepSettings, m.commit, m.removeOld, m.unmark}
}

// finish removes what a move that was killed after its commit left beside server.toml, where the state is by default.
func (m *move) finish() error {
	if _, err := os.Lstat(filepath.Join(m.c.State, movingFile)); err != nil || m.c.State == m.c.Dir {
		return nil
	}
	text, err := config.WithState(m.c.Dir, m.c.Text(), m.c.Dir)
	if err != nil {
		return err
	}
	before, err := config.Parse(m.c.Dir, config.FileName, text)
	if err != nil {
		return err
	}
	left := move{c: before, next: m.c}
	return errors.Join(left.removeOld(), m.unmark())
}

// mark makes the mark, unless the directory has state that is no copy.
func (m *move) mark() error {
	to := m.next.State
	path := filepath.Join(to, movingFile)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	for _, name := range contents {
		if _, err := os.Lstat(filepath.Join(to, name)); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(fmt.Errorf("%s: %w", to, ErrOccupied), err)
		}
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close(), syncDir(to))
}

func (m *move) unmark() error {
	err := os.Remove(filepath.Join(m.next.State, movingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// contents are the files of a state directory that have content, apart from the settings.
var contents = []string{config.JournalFile, LedgerFile, config.ActionsFile, config.RecoveryFile,
	config.BundlesFile, config.BundlesFile2}

// files returns the names of the files that have content, relative to either directory.
func (m *move) files() []string {
	names := slices.Clone(contents)
	if m.c.Audit.File == m.next.Audit.File {
		return names // it is elsewhere, or in the journal of systemd
	}
	audit, err := filepath.Rel(m.c.State, m.c.Audit.File)
	if err != nil {
		return names
	}
	return append(names, audit)
}

// copyAll copies the files. The server's user may own both directories, so no path may lead out of them.
func (m *move) copyAll() error {
	from, err := os.OpenRoot(m.c.State)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenRoot(m.next.State)
	if err != nil {
		return err
	}
	defer to.Close()
	for _, name := range m.files() {
		if err := copyFile(to, from, name); err != nil {
			return fmt.Errorf("copying %s: %w", filepath.Join(m.c.State, name), err)
		}
	}
	return syncDir(m.next.State)
}

// keepSettings lets the last good settings name the new directory too: they are used with a mistake in server.toml.
func (m *move) keepSettings() error {
	latest, highest := latestIn(settingsPlaces(m.c.Dir, m.c.State), m.c.Dir)
	if latest.dir == "" {
		return nil
	}
	text, err := config.WithState(m.c.Dir, latest.text, m.next.State)
	if err != nil {
		return fmt.Errorf("the last good settings: %w", err)
	}
	next := writing{number: highest + 1, at: m.now, dir: m.c.Dir, text: text}
	for _, at := range Distinct(m.next.State, m.c.Dir) {
		if err := saveIn(at, next, latest, at == m.next.State); err != nil {
			return err
		}
	}
	return nil
}

// commit moves the state by the new server.toml.
func (m *move) commit() error {
	return place.Write(filepath.Join(m.c.Dir, config.FileName), m.text, place.OnlyOver, place.ForReaders)
}

// removeOld removes the files of the old directory, its lock last. A keeper that holds the guard ends with its file, so
// that stays until the next server has ended the keeper.
func (m *move) removeOld() error {
	names := slices.Concat(m.files(), []string{filepath.Join(control.Beside, control.SocketName), control.Beside,
		control.SocketName, config.ShareFile, config.TakenFile, LockFile})
	if m.c.State != m.next.Dir {
		names = append(names, SettingsFile)
	}
	if held, err := firewall.HasKeeper(m.c.State); err == nil && !held {
		names = append(names, firewall.KeeperFile)
	}
	old, err := os.OpenRoot(m.c.State)
	if err != nil {
		return err
	}
	defer old.Close()
	var errs []error
	for _, name := range names {
		if err := old.Remove(name); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// copyFile copies a plain file, whole or not at all, for the owner of the new directory. A missing one is no error.
func copyFile(to, from *os.Root, name string) error {
	source, err := from.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer source.Close()
	if err := checkPlain(source); err != nil {
		return err
	}
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if err := hasRoom(to.Name(), info.Size()); err != nil {
		return err
	}
	tmp := name + ".new"
	if err := to.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := to.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if name == config.RecoveryFile { // its counts are good in one file only
		err = errors.Join(ownedAs(file, to), recovery.Copy(file, source))
	} else {
		err = fill(file, to, source, info)
	}
	if err != nil {
		return errors.Join(err, to.Remove(tmp))
	}
	return to.Rename(tmp, name)
}

// fill copies a file. The server's user may have written what is in it, and can rename the copy: it must not be root's
// for a moment, because root trusts its own settings.
func fill(file *os.File, to *os.Root, source io.Reader, info fs.FileInfo) error {
	if err := ownedAs(file, to); err != nil {
		return err
	}
	// The copy ends at this size, because a process could append for ever.
	if _, err := io.CopyN(file, source, info.Size()); err != nil {
		return err
	}
	return errors.Join(file.Chmod(info.Mode().Perm()&0o640), file.Sync())
}

// ownedAs gives a new file to the owner of its directory.
func ownedAs(file *os.File, root *os.Root) error {
	if os.Geteuid() != 0 {
		return nil
	}
	dir, err := root.Stat(".")
	if err != nil {
		return err
	}
	owner := dir.Sys().(*syscall.Stat_t)
	return file.Chown(int(owner.Uid), int(owner.Gid))
}

// hasRoom returns an error unless a file of that size fits: it may have holes, which a copy has not.
func hasRoom(dir string, size int64) error {
	var at unix.Statfs_t
	if err := unix.Statfs(dir, &at); err != nil {
		return err
	}
	if uint64(size)/uint64(at.Bsize) >= at.Bavail {
		return fmt.Errorf("%s has no room for %d bytes", dir, size)
	}
	return nil
}

// makeStateDir makes a state directory for the server's user alone, if it is missing or empty. One of another user than
// root, the server's and this one is refused, and, for root, one below a directory that others can change.
func makeStateDir(dir string) error {
	if os.Geteuid() == 0 && !rootMakes(dir) {
		return fmt.Errorf("%s: users other than root can change a directory above it", dir)
	}
	uid, gid, ok := Account(SystemUser)
	if info, err := os.Lstat(dir); err == nil {
		owner := int(info.Sys().(*syscall.Stat_t).Uid)
		if owner != 0 && owner != os.Geteuid() && (!ok || owner != uid) {
			return fmt.Errorf("%s belongs to user %d: name another directory", dir, owner)
		}
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if os.Geteuid() != 0 || !ok {
		return syncDir(filepath.Dir(dir))
	}
	if err := errors.Join(os.Chown(dir, uid, gid), os.Chmod(dir, 0o700)); err != nil {
		return fmt.Errorf("giving %s to the user %s: %w", quote.Shell(dir), SystemUser, err)
	}
	return syncDir(filepath.Dir(dir))
}

// rootMakes reports whether root alone can change what is at a path, which need not exist.
func rootMakes(path string) bool {
	above := filepath.Dir(path)
	for above != "/" {
		if _, err := os.Lstat(above); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		above = filepath.Dir(above)
	}
	return onlyRoots(above)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
