package statefile

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// openAndClose opens the file in dir, or makes it.
func openAndClose(t *testing.T, dir string) {
	t.Helper()
	f := lab.Value(Open(filepath.Join(dir, "file"), true))(t)
	f.Close()
}

// owned returns a state directory that belongs to an ordinary user.
func owned(t *testing.T) string {
	t.Helper()
	lab.NeedRoot(t)
	dir := t.TempDir()
	lab.Must(t, os.Chown(dir, 65534, 65534))
	return dir
}

func ownerOf(t *testing.T, dir string) int {
	t.Helper()
	info := lab.Value(os.Stat(filepath.Join(dir, "file")))(t)
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

func TestLedgerBelongsToItsDirectory(t *testing.T) {
	dir := owned(t)
	openAndClose(t, dir)
	if uid := ownerOf(t, dir); uid != 65534 {
		t.Errorf("the ledger belongs to user %d, want the owner of its directory", uid)
	}
}

// TestOldLedgerKeepsItsOwner: an empty file that was already there could be one being made just now; it is still not
// given to the owner of the directory.
func TestOldLedgerKeepsItsOwner(t *testing.T) {
	dir := owned(t)
	lab.Must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	openAndClose(t, dir)
	if uid := ownerOf(t, dir); uid != 0 {
		t.Errorf("the file was given to user %d", uid)
	}
}

// TestOwnerCannotBeChanged: without CAP_CHOWN the ledger stays with the user who made it, and works.
func TestOwnerCannotBeChanged(t *testing.T) {
	dir := owned(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends without its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var few [2]unix.CapUserData
		few[0].Effective = 1 << unix.CAP_DAC_OVERRIDE
		few[0].Permitted = few[0].Effective
		if err := unix.Capset(&header, &few[0]); err != nil {
			done <- err
			return
		}
		l, err := Open(filepath.Join(dir, "file"), true)
		if err == nil {
			err = l.Close()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Errorf("got %v, want a ledger", err)
	}
	if uid := ownerOf(t, dir); uid != 0 {
		t.Fatalf("the ledger belongs to user %d; the thread had CAP_CHOWN", uid)
	}
}

// TestLinkedFiles: the owner of the state directory can link one of root's files there. Root must not write to it,
// nor give it away.
func TestLinkedFiles(t *testing.T) {
	for _, name := range []string{"file", "another"} {
		dir := owned(t)
		victim := filepath.Join(filepath.Dir(dir), "victim") // a link does not reach to another file system
		lab.Must(t, errors.Join(os.WriteFile(victim, nil, 0o644), os.Link(victim, filepath.Join(dir, name))))
		f, err := Open(filepath.Join(dir, name), true)
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "hard links") {
			t.Errorf("%s: got %v, want that it has another name", name, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(victim, &st); err != nil || st.Uid != 0 || st.Size != 0 || st.Mode&0o777 != 0o644 {
			t.Errorf("%s: the file that has another name was changed: %+v, %v", name, st, err)
		}
	}
}

// TestHeldFile: any process of the file's owner can lock it, and root must not wait for the lock for ever.
func TestHeldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	var files [2]*os.File
	for i := range files {
		f := lab.Value(Open(path, true))(t)
		defer f.Close()
		files[i] = f
	}
	lab.Must(t, Flock(files[0], unix.LOCK_EX))
	err := AloneWithin(time.Millisecond, files[1], func() error { t.Error("called without the lock"); return nil })
	if err == nil || !strings.Contains(err.Error(), "fuser") {
		t.Errorf("got %v, want the command that finds the holder", err)
	}
}
