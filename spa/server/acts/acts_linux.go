package acts

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
)

// systemUser is the user that the server becomes.
const systemUser = "spa"

// tell lets the server of a state directory write the line.
func tell(ctx context.Context, state string, r control.Request) error {
	client, err := control.Dial(state)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Ask(ctx, r, func(control.Reply) error { return nil })
}

// withRightsFor calls do with the rights that a log at path is written with. Where another user than root can change
// the way to it, root has only the rights of the server's user: the log could be led to any file of root's.
func withRightsFor(path string, do func() error) error {
	if os.Geteuid() != 0 || rootAlone(filepath.Dir(path)) {
		return do()
	}
	return sandbox.As(systemUser, do)
}

// onlyRoot reports whether root alone can change a directory's entries, or those that are root's.
func onlyRoot(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Uid == 0 && (info.Mode()&fs.ModeSymlink != 0 || info.Mode().Perm()&0o022 == 0 ||
		info.Mode()&fs.ModeSticky != 0)
}
