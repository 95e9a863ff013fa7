package check

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/setup"
)

// checkOwners checks the owners of the gateway's files: an owner can change a file, whatever its mode.
func checkOwners(c *config.Config, h *host) []Finding {
	var found []Finding
	clients := filepath.Join(c.Dir, config.ClientsDir)
	for _, path := range setup.Distinct(c.Dir, clients, filepath.Join(c.Dir, config.FileName),
		filepath.Join(c.Dir, config.GateFile), c.State) {
		owner, err := ownerOf(path)
		if err != nil || h.trusts(owner) {
			continue // a missing file is reported where it is read
		}
		found = append(found, Finding{
			Severity: Warning, Subject: path,
			Text: fmt.Sprintf("it belongs to user %d, not to root or the server's user: user %[1]d can change what is "+
				"guarded and which clients get in", owner),
			Advice: "chown root " + quote.Shell(path),
		})
	}
	return append(found, checkLegible(clients, h)...)
}

// trusts reports whether files may belong to the user: root, the server's user, or the user who runs this.
func (h *host) trusts(uid int) bool {
	server, _, ok := h.server()
	return uid == 0 || uid == h.uid || ok && uid == server
}

// server returns the user and group that a server started by root becomes; false: none.
func (h *host) server() (uid, gid int, ok bool) {
	if uid, gid, ok := h.accounts(setup.SystemUser); ok || h.uid != 0 {
		return uid, gid, ok
	}
	uid, gid, err := sandbox.Becomes(setup.SystemUser)
	return uid, gid, err == nil && uid != 0
}

// checkLegible checks whether the server can still read the client files once it is not root.
func checkLegible(clients string, h *host) []Finding {
	uid, gid, ok := h.server()
	fi, err := os.Stat(clients)
	if err != nil || !ok {
		return nil
	}
	if setup.Permits(fi, uid, gid, setup.MayRead|setup.MaySearch) || setup.HasACL(clients) {
		return nil
	}
	name := setup.SystemUser
	if uid == sandbox.Unnamed {
		name = strconv.Itoa(uid)
	}
	return []Finding{{
		Severity: Problem, Subject: clients,
		Text:   "the user " + name + " cannot read it, so the server does not start",
		Advice: fmt.Sprintf("chgrp -R %s %s && chmod 750 %[2]s", name, quote.Shell(clients)),
	}}
}
