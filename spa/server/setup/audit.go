package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

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
		return fmt.Sprintf("install -m 600 -o %s -g %[1]s /dev/null %s && %s", user, word, reload)
	case err != nil || !info.Mode().IsRegular():
		return fmt.Sprintf("mv %s %s && install -m 600 -o %s -g %[3]s /dev/null %[1]s && %[4]s", word,
			quote.Shell(path+".old"), user, reload)
	case Permits(info, uid, gid, MayWrite):
		return reload // it was moved without a reload
	}
	return fmt.Sprintf("chown %s %s && chmod u+rw %[2]s && %s", user, word, reload)
}
