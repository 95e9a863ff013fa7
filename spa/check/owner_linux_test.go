package check

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestCheckOwners: files of another user, and a directory that the server cannot read, are reported.
func TestCheckOwners(t *testing.T) {
	lab.NeedRoot(t)
	const mallory, server = 64124, 64123
	tests := []struct {
		name     string
		path     string // below the configuration
		uid, gid int
		mode     os.FileMode
		want     Severity // empty: nothing is found
		says     []string
	}{
		{name: "the server's group", path: "clients", gid: server, mode: 0o750},
		{name: "the server's own", path: "clients", uid: server, gid: server, mode: 0o700},
		{name: "another's directory", path: ".", uid: mallory, gid: server, mode: 0o750, want: Warning,
			says: []string{"64124", "chown root"}},
		{name: "another's clients", path: "clients", uid: mallory, gid: server, mode: 0o750, want: Warning,
			says: []string{"clients", "64124"}},
		{name: "another's gate key", path: "gate.key", uid: mallory, gid: server, mode: 0o640, want: Warning,
			says: []string{"gate.key", "64124"}},
		{name: "another's settings", path: "server.toml", uid: mallory, gid: server, mode: 0o640, want: Warning,
			says: []string{"server.toml", "64124"}},
		{name: "another group's", path: "clients", gid: mallory, mode: 0o750, want: Problem,
			says: []string{"clients", "does not start", "chgrp -R spa"}},
		{name: "not for the group", path: "clients", gid: server, mode: 0o700, want: Problem,
			says: []string{"does not start"}},
		{name: "not to be entered", path: "clients", gid: server, mode: 0o740, want: Problem,
			says: []string{"does not start"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := initialised(t, nil, keys.Client{RequireSource: true})
			h := quietHost()
			h.accounts = func(string) (uid, gid int, ok bool) { return server, server, true }
			for path, mode := range map[string]os.FileMode{config.ClientsDir: 0o750, test.path: test.mode} {
				own(t, filepath.Join(c.Dir, path), 0, server, mode)
			}
			own(t, filepath.Join(c.Dir, test.path), test.uid, test.gid, test.mode)
			found := checkOwners(c, h)
			if test.want == "" && len(found) != 0 {
				t.Errorf("got %+v, want nothing", found)
			}
			if test.want != "" && (len(found) != 1 || !says(found, test.want, test.says)) {
				t.Errorf("got %+v, want a %q that says %q", found, test.want, test.says)
			}
		})
	}
}

// TestCheckOwnersACL: if an access control list lets the server in, the mode does not matter.
func TestCheckOwnersACL(t *testing.T) {
	lab.NeedRoot(t)
	const server = 64123
	c := initialised(t, nil, keys.Client{RequireSource: true})
	h := quietHost()
	h.accounts = func(string) (uid, gid int, ok bool) { return server, server, true }
	clients := filepath.Join(c.Dir, config.ClientsDir)
	own(t, clients, 0, 0, 0o750)
	list := binary.LittleEndian.AppendUint32(nil, 2) // its version; then type, permissions and id of each entry
	for _, entry := range [][3]uint32{{1, 7, 1<<32 - 1}, {2, 5, server}, {4, 5, 1<<32 - 1},
		{16, 5, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		list = binary.LittleEndian.AppendUint16(list, uint16(entry[0]))
		list = binary.LittleEndian.AppendUint16(list, uint16(entry[1]))
		list = binary.LittleEndian.AppendUint32(list, entry[2])
	}
	if err := unix.Setxattr(clients, "system.posix_acl_access", list, 0); errors.Is(err, unix.EOPNOTSUPP) {
		lab.Skip(t, "needs a file system with access control lists for temporary files: set TMPDIR")
	} else if err != nil {
		t.Fatal(err)
	}
	if found := checkOwners(c, h); len(found) != 0 {
		t.Errorf("got %+v, want nothing", found)
	}
}

func own(t *testing.T, path string, uid, gid int, mode os.FileMode) {
	t.Helper()
	lab.Must(t, os.Chown(path, uid, gid))
	lab.Must(t, os.Chmod(path, mode))
}
