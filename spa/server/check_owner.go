package server

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/spa/config"
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
		found = append(found, Finding{Weak, path, fmt.Sprintf("it belongs to the user %d, who is neither root nor the server's: he decides what is guarded, and who gets in", owner),
			"chown root " + keys.ShellWord(path)})
	}
	return append(found, checkLegible(clients, h)...)
}

// trusts reports whether files may belong to the user: root, the server's, or who runs this.
func (h *host) trusts(uid int) bool {
	server, _, ok := h.accounts(SystemUser)
	return uid == 0 || uid == h.uid || ok && uid == server
}

// checkLegible looks whether the server will be able to read the clients once it is the system user.
func checkLegible(clients string, h *host) []Finding {
	uid, gid, ok := h.accounts(SystemUser)
	fi, err := os.Stat(clients)
	if err != nil || !ok {
		return nil
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || mayList(fi, st, uid, gid) || hasACL(clients) {
		return nil
	}
	return []Finding{{Problem, clients, "the user " + SystemUser + " may not read it, and the server does not start",
		fmt.Sprintf("chgrp -R %s %s && chmod 750 %[2]s", SystemUser, keys.ShellWord(clients))}}
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
