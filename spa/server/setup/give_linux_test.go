package setup

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// TestGivenThroughALink: a command that root pastes gives away no file of root's, although the user who gets one has
// put a link there since.
func TestGivenThroughALink(t *testing.T) {
	lab.NeedRoot(t)
	const user = "nobody"
	uid, gid, ok := Account(user)
	if !ok {
		t.Fatal("there is no user " + user)
	}
	state := filepath.Join(t.TempDir(), "a state")
	file, precious := filepath.Join(state, "lock"), filepath.Join(t.TempDir(), "precious")
	lab.Must(t, errors.Join(os.Mkdir(state, 0o700), os.Chown(state, uid, gid), os.WriteFile(precious, nil, 0o604),
		os.Chmod(precious, 0o604), os.Symlink(precious, file), os.Chmod(filepath.Dir(state), 0o755),
		os.Chmod(filepath.Dir(filepath.Dir(state)), 0o755)))
	paste := func() {
		command := giveCommand(file, user, user, "600")
		lab.Pasteable(t, "give", command)
		_ = exec.Command("sh", "-c", command).Run() // it may fail
	}
	paste()
	info := lab.Value(os.Stat(precious))(t)
	if info.Sys().(*syscall.Stat_t).Uid != 0 || info.Mode().Perm() != 0o604 {
		t.Errorf("root's file has the mode %v and belongs to %d", info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
	}
	lab.Must(t, errors.Join(os.Remove(file), os.WriteFile(file, nil, 0o400)))
	paste()
	info = lab.Value(os.Stat(file))(t)
	if int(info.Sys().(*syscall.Stat_t).Uid) != uid || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has the mode %v and belongs to %d", info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
	}
}
