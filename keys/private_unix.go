//go:build unix

package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

func checkAccess(d folder, path string, fi fs.FileInfo, most fs.FileMode) error {
	uid, gid, ok := ownerOf(fi)
	if !ok {
		return fmt.Errorf("checking %s: its owner cannot be told", path)
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
	if trouble := a.trouble(most); trouble != "" {
		owner := userName(a.dirUID) + ":" + groupName(a.dirGID)
		return fmt.Errorf("%s: %w: %s: %s", path, ErrExposed, trouble, a.mend(path, most, owner))
	}
	return nil
}

func ownerOf(fi fs.FileInfo) (uid, gid int, ok bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(st.Uid), int(st.Gid), true
}

func userName(uid int) string {
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
func (d folder) openNoFollow(file string) (*os.File, error) {
	f, err := d.openFlags(file, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EMLINK) {
		return nil, &FileError{File: filepath.Join(d.path, file), Text: "a symbolic link, which files with secrets must not be"}
	}
	return f, err
}

// give hands a new file in dir to who is to read it, and sets its mode.
//
// The server's files stay with whom the directory belongs to: root writes for the
// directory's group if that is not root's own, and otherwise for the directory's owner.
func give(f *os.File, dir string, whom audience) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	uid, gid, ok := ownerOf(fi)
	if !ok {
		return errors.New("the owner of the directory cannot be told")
	}
	alone := fs.FileMode(0o600)
	if whom == forReaders {
		alone = 0o640
	}
	if me := os.Geteuid(); me != 0 {
		if uid != me {
			return fmt.Errorf("%s belongs to %s: run this as %[2]s", dir, userName(uid))
		}
		return f.Chmod(alone)
	}
	if whom != forOwner && gid != 0 {
		return giveTo(f, 0, gid, 0o640)
	}
	return giveTo(f, uid, gid, alone)
}

func giveTo(f *os.File, uid, gid int, mode fs.FileMode) error {
	if err := f.Chown(uid, gid); err != nil {
		return err
	}
	return f.Chmod(mode)
}

// syncDir makes a rename in dir last. File systems that cannot do it for a directory
// answer EINVAL.
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
