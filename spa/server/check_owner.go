package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"sallyport/keys"
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
		found = append(found, Finding{Warning, path, fmt.Sprintf("it belongs to the user %d, who is neither root nor the server's: he decides what is guarded, and who gets in", owner),
			"chown root " + keys.ShellWord(path)})
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
	dir = keys.ShellWord(dir)
	return "chgrp -R " + group + " " + dir + " && chmod -R g+rX " + dir
}

// checkLegible looks whether the server will be able to read the clients once it is no more root.
func checkLegible(clients string, h *host) []Finding {
	uid, gid, ok := h.server()
	fi, err := os.Stat(clients)
	if err != nil || !ok {
		return nil
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || mayList(fi, st, uid, gid) || hasACL(clients) {
		return nil
	}
	name := SystemUser
	if uid == sandbox.Unnamed {
		name = strconv.Itoa(uid)
	}
	return []Finding{{Problem, clients, "the user " + name + " may not read it, and the server does not start",
		fmt.Sprintf("chgrp -R %s %s && chmod 750 %[2]s", name, keys.ShellWord(clients))}}
}

// mayList reports whether a user may read a directory and what is in it, by its mode.
func mayList(fi os.FileInfo, st *syscall.Stat_t, uid, gid int) bool {
	const list = 0o5
	mode := fi.Mode().Perm()
	switch {
	case int(st.Uid) == uid:
		return mode>>6&list == list
	case int(st.Gid) == gid:
		return mode>>3&list == list
	}
	return mode&list == list
}

// hasACL reports whether more than the mode says who may read a path (acl(5)).
func hasACL(path string) bool {
	_, err := unix.Getxattr(path, "system.posix_acl_access", nil)
	return err == nil
}
