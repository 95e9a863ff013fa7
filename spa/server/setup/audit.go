package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sallyport/keys/quote"
	"sallyport/spa/sandbox"
)

// Restart is the command that restarts the server. It ends no grant.
const Restart = "systemctl restart spa-server"

// MendAudit returns the command after which the audit log of a server of this user can continue at its path.
func MendAudit(path, user string, uid, gid int) string {
	const reload = "systemctl reload spa-server"
	word := quote.Shell(path)
	info, err := os.Lstat(path)
	switch {
	case uid == sandbox.Unnamed, errors.Is(err, fs.ErrPermission):
		return Restart
	case errors.Is(err, fs.ErrNotExist):
		return emptyCommand(path, user) + " && " + reload
	case err != nil || !info.Mode().IsRegular():
		return fmt.Sprintf("mv -T %s %s && %s && %s", word, quote.Shell(path+".old"), emptyCommand(path, user), reload)
	case Permits(info, uid, gid, MayWrite):
		return reload // it was moved without a reload
	}
	return giveCommand(path, user, user, "u+rw") + " && " + reload
}

// HideFile returns the command after which other users of this host cannot read a file of the server.
func HideFile(path string) string {
	if _, _, ok := Account(SystemUser); !ok || onlyRoots(filepath.Dir(path)) {
		return "chmod o-rwx " + quote.Shell(path)
	}
	return giveCommand(path, SystemUser, SystemUser, "o-rwx")
}

// emptyCommand returns the command that makes an empty file of the user. In a directory that root alone does not
// control, the user makes it, so that a link there leads root nowhere.
func emptyCommand(path, user string) string {
	if user == "root" || onlyRoots(filepath.Dir(path)) {
		return fmt.Sprintf("install -T -m 600 -o %s -g %[1]s /dev/null %s", user, quote.Shell(path))
	}
	return fmt.Sprintf("su -s /bin/sh -c %s %s", quote.Shell("umask 077; : >> "+quote.Shell(path)), user)
}

// giveCommand returns the command that gives a file to an owner, a user with or without its group, and sets its mode.
// Where root is not alone in changing the directory, the file may be a link by the time that root pastes the command.
// So that follows none, and sets the mode as the user.
func giveCommand(path, user, owner, mode string) string {
	word := quote.Shell(path)
	if user == "root" || onlyRoots(filepath.Dir(path)) {
		return fmt.Sprintf("chown %s %s && chmod %s %[2]s", owner, word, mode)
	}
	return fmt.Sprintf("chown -h %s %s && su -s /bin/sh -c %s %s", owner, word, quote.Shell("chmod "+mode+" "+word), user)
}
