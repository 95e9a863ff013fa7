//go:build unix

package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"sallyport/keys/quote"
)

func checkAccess(d Folder, path string, fi fs.FileInfo, most fs.FileMode) error {
	uid, gid, ok := ownerOf(fi)
	if !ok {
		return fmt.Errorf("checking %s: its owner is unknown", path)
	}
	a := access{mode: fi.Mode(), uid: uid, gid: gid, dirUID: -1, dirGID: -1, reader: os.Geteuid()}
	if a.trouble(most) == "" {
		return nil // also without what the directory would excuse
	}
	dir, err := d.stat()
	if err != nil {
		return fmt.Errorf("checking the directory of %s: %w", path, err)
	}
	a.dirUID, a.dirGID, _ = ownerOf(dir)
	a.service = a.wrongOwner() && inGroup(a.uid, a.dirGID)
	if trouble := a.trouble(most); trouble != "" {
		owner := d.ownerText(a)
		return fmt.Errorf("%s: %w: %s: %s", path, ErrExposed, trouble, a.mend(path, most, owner))
	}
	return nil
}

// checkReadable refuses a file that the server's user cannot read, if root is the reader. Any other reader has just
// read it.
func checkReadable(d Folder, path string, fi fs.FileInfo) error {
	uid, gid, ok := ownerOf(fi)
	dir, err := d.stat()
	if os.Geteuid() != 0 || !ok || err != nil {
		return nil
	}
	a := access{mode: fi.Mode(), uid: uid, gid: gid}
	a.dirUID, a.dirGID, _ = ownerOf(dir)
	if a.readable() {
		return nil
	}
	if a.service = inGroup(a.uid, a.dirGID); a.readable() {
		return nil
	}
	return d.unreadable(path, a)
}

// unreadable returns the error for a file that the server's user cannot read.
func (d Folder) unreadable(path string, a access) error {
	return fmt.Errorf("%s: %w: chown %s %s && chmod 640 %[4]s", path, ErrUnreadable, d.ownerText(a), quote.Shell(path))
}

// ownerText returns the owner that the folder's files should have, as user:group.
func (d Folder) ownerText(a access) string {
	if d.owner != "" {
		return d.owner
	}
	return userName(a.dirUID) + ":" + groupName(a.dirGID)
}

// Named returns the folder with its owner looked up by name, for a process that cannot do that later.
func (d Folder) Named() Folder {
	if dir, err := d.stat(); err == nil {
		if uid, gid, ok := ownerOf(dir); ok {
			d.owner = userName(uid) + ":" + groupName(gid)
		}
	}
	return d
}

// denied adds to a permission error what lets the server's user open the file, if this is the server: the directory
// belongs to its user or group.
func (d Folder) denied(path string, err error) error {
	dir, statErr := d.stat()
	if !errors.Is(err, fs.ErrPermission) || statErr != nil || os.Geteuid() == 0 {
		return err
	}
	a := access{}
	a.dirUID, a.dirGID, _ = ownerOf(dir)
	if a.dirUID != os.Geteuid() && a.dirGID != os.Getegid() {
		return err
	}
	return d.unreadable(path, a)
}

// inGroup reports whether gid is the user's own group, and not root's.
func inGroup(uid, gid int) bool {
	if uid == 0 || gid == 0 {
		return false
	}
	u, err := user.LookupId(strconv.Itoa(uid))
	return err == nil && u.Gid == strconv.Itoa(gid)
}

func ownerOf(fi fs.FileInfo) (uid, gid int, ok bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(st.Uid), int(st.Gid), true
}

func userName(uid int) string {
	if uid == 0 {
		return "root" // even if no name can be looked up any more
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

func groupName(gid int) string {
	if g, err := user.LookupGroupId(strconv.Itoa(gid)); err == nil {
		return g.Name
	}
	return strconv.Itoa(gid)
}

// openFile opens a file for reading; a FIFO does not block.
func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// openNoFollow is openFile, but refuses a symbolic link.
func (d Folder) openNoFollow(file string) (*os.File, error) {
	link := &FileError{File: filepath.Join(d.Path, file), Text: "a symbolic link, which files with secrets must not be"}
	for range 100 {
		f, err := d.openFlags(file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK)
		if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EMLINK) {
			return nil, link
		}
		if err != nil || d.Root == nil {
			return f, err
		}
		// A root follows links within it, whatever the flags.
		opened, err := f.Stat()
		named, namedErr := d.Root.Lstat(file)
		if err := errors.Join(err, namedErr); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(err, f.Close())
		}
		if namedErr == nil && os.SameFile(opened, named) {
			return f, nil
		}
		f.Close()
		if namedErr == nil && named.Mode()&fs.ModeSymlink != 0 {
			return nil, link
		}
		// Another file was moved into its place in between.
	}
	return nil, fmt.Errorf("reading %s: it keeps being replaced", link.File)
}

// give hands a new file in dir to its readers, and sets its mode. Root writes for the directory's group if that is not
// root's own, and otherwise for the directory's owner.
func give(f *os.File, path string, whom Audience) error {
	if whom == AsBefore {
		return giveAs(f, path)
	}
	dir := filepath.Dir(path)
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	uid, gid, ok := ownerOf(fi)
	if !ok {
		return errors.New("the directory's owner is unknown")
	}
	alone := fs.FileMode(0o600)
	switch whom {
	case ForReaders:
		alone = 0o640
	case ForAll:
		alone = 0o644
	}
	if me := os.Geteuid(); me != 0 {
		if uid != me {
			return fmt.Errorf("%s belongs to %s: run this as %[2]s", dir, userName(uid))
		}
		return f.Chmod(alone)
	}
	if whom != ForOwner && whom != ForAll && gid != 0 {
		return giveTo(f, 0, gid, 0o640)
	}
	return giveTo(f, uid, gid, alone)
}

// giveAs gives a file the owner, group and mode of the one at path.
func giveAs(f *os.File, path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	uid, gid, ok := ownerOf(fi)
	if !ok || !fi.Mode().IsRegular() { // a link has a mode of its own, that lets everyone write
		return errors.New("the file that it replaces is not a regular file with an owner")
	}
	return giveTo(f, uid, gid, fi.Mode().Perm())
}

func giveTo(f *os.File, uid, gid int, mode fs.FileMode) error {
	if err := f.Chown(uid, gid); err != nil {
		return err
	}
	return f.Chmod(mode)
}

// syncDir makes a rename in dir durable. File systems that cannot sync a directory return EINVAL.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}
