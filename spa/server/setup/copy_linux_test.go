package setup

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestCopyIsNeverRoots: what the server's user wrote is at no moment in a file of root in a directory of that user. It
// could give such a file the name of the last good settings, which root trusts.
func TestCopyIsNeverRoots(t *testing.T) {
	lab.NeedRoot(t)
	const nobody = 65534
	old, state := t.TempDir(), t.TempDir()
	lab.Must(t, os.Chown(state, nobody, nobody))
	journal := filepath.Join(old, config.JournalFile)
	lab.Must(t, os.WriteFile(journal, make([]byte, 64<<20), 0o600))
	from, to := lab.Value(os.OpenRoot(old))(t), lab.Value(os.OpenRoot(state))(t)
	defer from.Close()
	defer to.Close()
	copied := make(chan error, 1)
	go func() { copied <- copyFile(to, from, config.JournalFile) }()
	for {
		info, err := os.Lstat(filepath.Join(state, config.JournalFile+".new"))
		if err == nil && info.Size() > 0 && info.Sys().(*syscall.Stat_t).Uid != nobody {
			t.Error("root's file has what another user wrote")
			lab.Must(t, <-copied)
			return
		}
		select {
		case err := <-copied:
			lab.Must(t, err)
			return
		default:
		}
	}
}
