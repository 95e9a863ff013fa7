package server

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/sandbox"
)

// checkOwners looks whose the gateway's files are: whoever owns one may change it, whatever its mode.
func checkOwners(c *config.Config, h *host) []Finding {
	var found []Finding
	clients := filepath.Join(c.Dir, config.ClientsDir)
	for _, path := range distinct(c.Dir, clients, filepath.Join(c.Dir, config.FileName), filepath.Join(c.Dir, config.GateFile), c.State) {
		owner, err := ownerOf(path)
		if err != nil || h.trusts(owner) {
			continue // that it is not there is said where it is read
		}
		found = append(found, Finding{Warning, path, fmt.Sprintf("it belongs to user %d, not to root or the server's user: user %[1]d can change what is guarded and which clients get in", owner),
			"chown root " + quote.Shell(path)})
	}
	return append(found, checkLegible(clients, h)...)
}

// trusts reports whether files may belong to the user: root, the server's, or who runs this.
func (h *host) trusts(uid int) bool {
	server, _, ok := h.server()
	return uid == 0 || uid == h.uid || ok && uid == server
}

// server is the user and group that a server becomes which root starts; false: it becomes none.
func (h *host) server() (uid, gid int, ok bool) {
	if uid, gid, ok := h.accounts(SystemUser); ok || h.uid != 0 {
		return uid, gid, ok
	}
	uid, gid, err := sandbox.Becomes(SystemUser)
	return uid, gid, err == nil && uid != 0
}

// makeUser is the command that makes the system user.
const makeUser = "useradd --system --no-create-home --shell /usr/sbin/nologin " + SystemUser

// handOver is the command that lets a group read a gateway's files.
func handOver(group, dir string) string {
	dir = quote.Shell(dir)
	return "chgrp -R " + group + " " + dir + " && chmod -R g+rX " + dir
}

// checkLegible looks whether the server will be able to read the clients once it is no more root.
func checkLegible(clients string, h *host) []Finding {
	uid, gid, ok := h.server()
	fi, err := os.Stat(clients)
	if err != nil || !ok {
		return nil
	}
	if permits(fi, uid, gid, mayRead|maySearch) || hasACL(clients) {
		return nil
	}
	name := SystemUser
	if uid == sandbox.Unnamed {
		name = strconv.Itoa(uid)
	}
	return []Finding{{Problem, clients, "the user " + name + " may not read it, and the server does not start",
		fmt.Sprintf("chgrp -R %s %s && chmod 750 %[2]s", name, quote.Shell(clients))}}
}

// What a user may do to a file or a directory, as three bits of a mode.
const (
	mayRead   = 0o4
	mayWrite  = 0o2
	maySearch = 0o1
)

// permits reports whether the mode gives a user those rights. The user has this one group and no capability.
func permits(fi os.FileInfo, uid, gid int, want fs.FileMode) bool {
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
	if err != nil || hasACL(path) {
		return true // reported elsewhere, or unknown
	}
	uid, gid, err := sandbox.Becomes(SystemUser)
	return permits(fi, 0, 0, want) || err == nil && permits(fi, uid, gid, want)
}

// hasACL reports whether more than the mode says who may read a path (acl(5)).
func hasACL(path string) bool {
	_, err := unix.Getxattr(path, "system.posix_acl_access", nil)
	return err == nil
}
