package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"sallyport/firewall"
	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

// preparing hands a gateway's files to the server's user.
type preparing struct {
	uid, gid int
	did      []string
	errs     []error
}

// Prepare lets the server start as its own user with files that root made: an earlier version's, those of a command of
// root, or an administrator's. It returns a sentence for each change. Files in the directories that root alone can
// change are made if they are missing. Of others it takes only plain files of root that have one name: the server's
// user may own the directory, and must not choose what it is given. Files of other users stay as they are.
func Prepare(dir string) (did []string, err error) {
	uid, gid, ok := Account(SystemUser)
	if !ok {
		return nil, fmt.Errorf("there is no user %s: %s", SystemUser, MakeUser)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	p := &preparing{uid: uid, gid: gid}
	if path := filepath.Join(dir, config.FileName); rootWrites(path) {
		p.files(dir)
	} else {
		p.beside(dir)
		p.errs = append(p.errs, fmt.Errorf("%s can be changed by users other than root, so user %s gets no file that it "+
			"names elsewhere: %s", path, SystemUser, takeBack(dir)))
	}
	if !Running() {
		p.errs = append(p.errs, firewall.EndOwnKeepers())
	}
	return p.did, errors.Join(p.errs...)
}

// beside hands over the files that init makes beside server.toml, whatever that says.
func (p *preparing) beside(dir string) {
	if !onlyRoots(dir) {
		return // their names may lead elsewhere
	}
	c := config.Default(dir)
	p.legibles(dir)
	p.settings(dir)
	p.state(&c)
	p.audit(c.Audit.File)
}

// legibles lets the server's user read the directory of server.toml, that file and the gate key.
func (p *preparing) legibles(dir string) {
	p.directory(dir)
	for _, name := range []string{config.FileName, config.GateFile, config.FleetKeyFile} {
		p.legible(filepath.Join(dir, name))
	}
}

// files hands over the directory of server.toml and what that names.
func (p *preparing) files(dir string) {
	p.legibles(dir)
	c, err := config.Load(dir)
	if err != nil {
		if c, _, err = LastGood(dir); err != nil {
			p.errs = append(p.errs, err)
			return
		}
	}
	for _, place := range settingsPlaces(dir, c.State) {
		p.settings(place)
	}
	p.state(c)
	p.audit(c.Audit.File)
	if socket, ok := c.Metrics.Socket(); ok {
		p.metrics(socket)
	}
	if firewall.MayRunIptables(c.Firewall.Backend) { // a user must open the lock to take it
		p.own(firewall.XtablesLock, 0, 0o640)
	}
}

// rootWrites reports whether root alone can change what a file has, or make it if it is missing.
func rootWrites(path string) bool {
	if !onlyRoots(filepath.Dir(path)) {
		return false
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return true
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	info, err := os.Stat(real)
	return err == nil && rootOwns(info) && info.Mode().Perm()&0o022 == 0 && onlyRoots(filepath.Dir(real))
}

// takeBack returns the command that lets root alone change server.toml.
func takeBack(dir string) string {
	dir, file := quote.Shell(dir), quote.Shell(filepath.Join(dir, config.FileName))
	return fmt.Sprintf("chown root:%s %s %s && chmod go-w %[2]s %[3]s", SystemUser, dir, file)
}

// onlyRoots reports whether root alone can change which files are in a directory, and which directory has its path.
func onlyRoots(dir string) bool {
	info, err := os.Stat(dir)
	return err == nil && rootOwns(info) && info.Mode().Perm()&0o022 == 0 && rootLeadsTo(dir)
}

// rootLeadsTo reports whether root alone can change which directory has the path.
func rootLeadsTo(dir string) bool {
	for dir != "/" {
		dir = filepath.Dir(dir)
		info, err := os.Stat(dir)
		if err != nil || !rootOwns(info) || info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return false
		}
	}
	return true
}

func rootOwns(info fs.FileInfo) bool { return info.Sys().(*syscall.Stat_t).Uid == 0 }

func (p *preparing) note(err error, format string, values ...any) {
	if err != nil {
		p.errs = append(p.errs, err)
		return
	}
	p.did = append(p.did, fmt.Sprintf(format, values...))
}

// plain opens a plain file of root that has one name, for a change of its owner; nil if there is none.
func (p *preparing) plain(path string) *os.File {
	file, err := openPlainFile(path)
	if err != nil {
		return nil // missing, or reported by the server
	}
	if info, err := file.Stat(); err != nil || !rootOwns(info) {
		file.Close()
		return nil
	}
	return file
}

// directory lets the server's user into a directory of root that was made without a group for it.
func (p *preparing) directory(dir string) {
	info, err := os.Stat(dir)
	if err != nil || !onlyRoots(dir) || Permits(info, p.uid, p.gid, MayRead|MaySearch) || p.foreignGroup(info) ||
		HasACL(dir) {
		return
	}
	err = errors.Join(os.Chown(dir, 0, p.gid), os.Chmod(dir, info.Mode().Perm()|0o050))
	p.note(err, "the group %s may read %s", SystemUser, dir)
}

// foreignGroup reports whether an administrator has given the file to a group.
func (p *preparing) foreignGroup(info fs.FileInfo) bool {
	gid := int(info.Sys().(*syscall.Stat_t).Gid)
	return gid != 0 && gid != p.gid
}

// legible lets the server's user read a file that only root can read.
func (p *preparing) legible(path string) {
	file := p.plain(path)
	if file == nil {
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || Permits(info, p.uid, p.gid, MayRead) || p.foreignGroup(info) || HasACL(path) ||
		info.Mode().Perm()&0o027 != 0 { // others may read or write it: the server refuses a key like that
		return
	}
	err = errors.Join(file.Chown(0, p.gid), file.Chmod(info.Mode().Perm()|0o040))
	p.note(err, "the group %s may read %s", SystemUser, path)
}

// settings lets the server's user read the last good settings.
func (p *preparing) settings(place string) {
	file, err := openTrustedForReading(place)
	if err != nil {
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || Permits(info, p.uid, p.gid, MayRead) {
		return
	}
	p.note(showToServer(file), "the group %s may read %s", SystemUser, file.Name())
}

// state hands over the files of the state directory. If the server's user cannot make files there, it gets a directory
// for its socket.
func (p *preparing) state(c *config.Config) {
	dir := c.State
	p.directory(dir)
	names := []string{LockFile, LedgerFile, firewall.KeeperFile, config.JournalFile, config.RecoveryFile}
	if c.RunsPrograms() {
		names = append(names, config.ActionsFile)
	}
	if c.Fleet.On() {
		names = append(names, config.BundlesFile, config.BundlesFile2)
		if c.Fleet.Taken == filepath.Join(dir, config.TakenFile) {
			names = append(names, config.TakenFile)
		}
	}
	if !onlyRoots(dir) {
		if rootLeadsTo(dir) {
			for _, name := range names {
				p.give(filepath.Join(dir, name), p.uid)
			}
		}
		return
	}
	for _, name := range names {
		p.own(filepath.Join(dir, name), p.uid, 0o600)
	}
	p.socketIn(filepath.Join(dir, control.Beside))
}

// socketIn makes the directory of the socket. Root alone can change the directory that it is in.
func (p *preparing) socketIn(path string) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		p.errs = append(p.errs, err)
		return
	}
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() || !rootOwns(info) {
		return
	}
	err = errors.Join(os.Chown(path, p.uid, p.gid), os.Chmod(path, 0o700))
	p.note(err, "the user %s has %s for its socket", SystemUser, path)
}

// audit hands over the audit log.
func (p *preparing) audit(path string) {
	switch {
	case path == "":
	case onlyRoots(filepath.Dir(path)):
		p.own(path, p.uid, 0o640)
	case rootLeadsTo(filepath.Dir(path)):
		p.give(path, p.uid)
	}
}

// own gives a file to the user and to the server's group, and makes a missing one. Root alone can change its directory.
func (p *preparing) own(path string, uid int, mode fs.FileMode) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if errors.Is(err, fs.ErrExist) {
		p.give(path, uid)
		return
	}
	if err != nil {
		p.errs = append(p.errs, err)
		return
	}
	defer file.Close()
	p.note(errors.Join(file.Chown(uid, p.gid), file.Chmod(mode)), "made %s", path)
}

// give gives root's file to the user and to the server's group.
func (p *preparing) give(path string, uid int) {
	file := p.plain(path)
	if file == nil {
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return
	}
	mode := info.Mode().Perm()
	if uid == 0 {
		mode |= 0o040 // the group must open it
	}
	if int(info.Sys().(*syscall.Stat_t).Gid) == p.gid && mode == info.Mode().Perm() && uid == 0 {
		return
	}
	p.note(errors.Join(file.Chown(uid, p.gid), file.Chmod(mode)), "%s belongs to %s", path, SystemUser)
}

// metrics lets the server's user make the socket for metrics, in a directory of root that has nothing else: the socket
// gets the directory's group.
func (p *preparing) metrics(socket string) {
	dir := filepath.Dir(socket)
	entries, err := os.ReadDir(dir)
	if err != nil || !onlyRoots(dir) {
		return
	}
	for _, entry := range entries {
		if entry.Name() != filepath.Base(socket) {
			return
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		return
	}
	err = errors.Join(os.Chown(dir, p.uid, -1), os.Chmod(dir, info.Mode().Perm()|0o700|fs.ModeSetgid))
	p.note(err, "%s belongs to %s", dir, SystemUser)
}
