// Package setup sets a gateway up on its host, for the server and for the commands beside it: the lock, the system
// user, the files and the state directory, the last good settings, and the guard that is loaded with them.
package setup

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"sallyport/keys/quote"
	"sallyport/spa/sandbox"
)

// LockFile is the lock's name in the state directory: one server at a time.
const LockFile = "lock"

// SystemUser is the user that the server becomes, if it exists.
const SystemUser = "spa"

// LedgerFile is the name of the grant ledger in the state directory.
const LedgerFile = "grants"

// Account returns the numbers of a user and its own group; false if there is no such user.
func Account(name string) (uid, gid int, ok bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, false
	}
	uid, err = strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return uid, gid, err == nil && err2 == nil
}

// isServer reports whether this process runs as the server's user, as under the systemd units.
func isServer() bool {
	uid, _, ok := Account(SystemUser)
	return ok && uid == os.Geteuid()
}

// MakeUser is the command that creates the system user.
const MakeUser = "useradd --system --no-create-home --shell /usr/sbin/nologin " + SystemUser

// HandOver returns the command that lets a group read a gateway's files.
func HandOver(group, dir string) string {
	dir = quote.Shell(dir)
	return "chgrp -R " + group + " " + dir + " && chmod -R g+rX " + dir
}

// MakeState returns the command that makes the state directory: owned by root, as the server starts, and readable by
// the user that it becomes.
func MakeState(path string) string {
	command := "install -d -m 750 "
	if _, _, ok := Account(SystemUser); ok {
		command += "-g " + SystemUser + " "
	}
	return command + quote.Shell(path)
}

// What a user may do to a file or a directory, as three bits of a mode.
const (
	MayRead   = 0o4
	MayWrite  = 0o2
	MaySearch = 0o1
)

// Permits reports whether a file's mode gives the user these rights. The user is in this one group and has no
// capabilities.
func Permits(fi os.FileInfo, uid, gid int, want fs.FileMode) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	mode := fi.Mode().Perm()
	switch {
	case !ok:
		return false
	case int(st.Uid) == uid:
		mode >>= 6
	case int(st.Gid) == gid:
		mode >>= 3
	}
	return mode&want == want
}

// mayUse reports whether root without capabilities, or the server's user, may do all that to a path.
func mayUse(path string, want fs.FileMode) bool {
	fi, err := os.Stat(path)
	if err != nil || HasACL(path) {
		return true // reported elsewhere, or unknown
	}
	uid, gid, err := sandbox.Becomes(SystemUser)
	return Permits(fi, 0, 0, want) || err == nil && Permits(fi, uid, gid, want)
}

// HasACL reports whether a path has an access control list beyond its mode (acl(5)).
func HasACL(path string) bool {
	_, err := unix.Getxattr(path, "system.posix_acl_access", nil)
	return err == nil
}

// IsDir reports whether path is a directory.
func IsDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// Distinct returns each path once.
func Distinct(paths ...string) []string {
	seen := make(map[string]bool)
	var list []string
	for _, p := range paths {
		if p = filepath.Clean(p); !seen[p] {
			seen[p] = true
			list = append(list, p)
		}
	}
	return list
}

// ServerName is the name of the user and group that the server becomes, or their number if they have none.
func ServerName() string {
	if _, _, ok := Account(SystemUser); ok {
		return SystemUser
	}
	return fmt.Sprint(sandbox.Unnamed)
}
