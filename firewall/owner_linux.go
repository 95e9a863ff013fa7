package firewall

import (
	"os"
	"path/filepath"
	"syscall"
)

// keepOwner gives a file that was made by root to the owner of its directory: a daemon
// that starts as an ordinary user with CAP_NET_ADMIN must be able to open it later.
func keepOwner(f *os.File) error {
	dir, err := os.Stat(filepath.Dir(f.Name()))
	if err != nil {
		return err
	}
	owner, ok := dir.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}
