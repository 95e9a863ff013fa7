package place

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"sallyport/keys/quote"
)

// ErrExposed means that users other than its owner and the server's can read or have written a file with secrets. The
// error ends with the command that mends it. A key that may have been read should be replaced.
var ErrExposed = errors.New("others have access to this file with secrets")

// ErrUnreadable means that the server's user cannot read a file with secrets, even if this process runs as root and
// can. It wraps fs.ErrPermission, and ends with the command that mends it.
var ErrUnreadable = fmt.Errorf("the server's user cannot read this file: %w", fs.ErrPermission)

// Served is Private, and also refuses a file that only root can read: the server drops root's rights, and would lose
// the file later.
func Served(d Folder, path string, fi fs.FileInfo) error {
	if err := Private(d, path, fi); err != nil {
		return err
	}
	return checkReadable(d, path, fi)
}

// Private refuses a file with the server's secrets if others can read it, if its group can write it or is neither root
// nor the directory's group, or if it belongs to a user other than root, the reader and the owner of the directory. On
// systems with access lists (Windows) only the reader, SYSTEM and the administrators may have access: see accessList.
func Private(d Folder, path string, fi fs.FileInfo) error {
	return checkAccess(d, path, fi, 0o640)
}

// Own is Private for a person's own files, which no group may read either.
func Own(d Folder, path string, fi fs.FileInfo) error {
	return checkAccess(d, path, fi, 0o600)
}

// access describes who has access to a file with secrets, and to its directory.
type access struct {
	mode           fs.FileMode
	uid, gid       int
	dirUID, dirGID int
	reader         int  // the effective uid of this process
	service        bool // the owner's group is the directory's group, so the owner is the server's user
}

// trouble describes what is wrong; empty if nothing is.
func (a access) trouble(most fs.FileMode) string {
	switch {
	case a.wrongOwner():
		return "it belongs to another user"
	case a.mode.Perm()&0o077&^most != 0:
		return fmt.Sprintf("its mode is %04o", a.mode.Perm())
	case a.wrongGroup():
		return "its group is not the directory's"
	}
	return ""
}

func (a access) wrongOwner() bool {
	return a.uid != 0 && a.uid != a.reader && a.uid != a.dirUID && !a.service
}

func (a access) wrongGroup() bool {
	return a.mode.Perm()&0o070 != 0 && a.gid != 0 && a.gid != a.dirGID
}

// readable reports whether the server's user can read the file: it has the directory's group, or owns the
// directory where that is root's group. A directory of root alone is for a server that stays root.
func (a access) readable() bool {
	byOwner := a.mode.Perm()&0o400 != 0 && (a.uid == a.dirUID && a.uid != 0 || a.service)
	byGroup := a.mode.Perm()&0o040 != 0 && a.gid == a.dirGID && a.gid != 0
	return byOwner || byGroup || a.dirGID == 0 && a.dirUID == 0
}

// mend returns the command that corrects the file's owner and mode.
func (a access) mend(path string, most fs.FileMode, owner string) string {
	var commands []string
	if a.wrongOwner() || a.wrongGroup() {
		commands = append(commands, "chown "+owner+" "+quote.Shell(path))
	}
	if a.mode.Perm()&0o077&^most != 0 {
		commands = append(commands, fmt.Sprintf("chmod %o %s", most, quote.Shell(path)))
	}
	return strings.Join(commands, " && ")
}
