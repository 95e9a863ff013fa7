package firewall

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/keeper"
	"sallyport/firewall/internal/nftables"
	"sallyport/spa/lab"
)

// undying starts a process that claims to be a keeper and does not end: another one traces a thread of it, and never
// waits for that.
func (s *site) undying() {
	s.Helper()
	var k *keeper.Keeper
	lock := lab.Value(keeper.OpenFile(s.TempDir(), "", true))(s)
	s.Cleanup(func() { lock.Close() })
	s.must(s.gw.Do(func() error {
		conn, socket, err := nftables.Dial()
		if err != nil {
			return err
		}
		s.Cleanup(func() { conn.CloseLasting() })
		k, err = keeper.Start(lock, socket)
		return err
	}))
	s.Cleanup(func() { k.End() })
	stop, seized := make(chan struct{}), make(chan error)
	s.Cleanup(func() { close(stop) })
	go func() {
		runtime.LockOSThread() // and its end, with this goroutine's, frees the other process
		seized <- seizeThread(k.PID)
		<-stop
	}()
	s.must(<-seized)
}

func seizeThread(pid int) error {
	threads, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*")
	for _, thread := range threads {
		if id, _ := strconv.Atoi(filepath.Base(thread)); id != pid {
			return unix.PtraceSeize(id)
		}
	}
	if err == nil {
		err = os.ErrNotExist
	}
	return err
}

// TestUndyingKeeper: a process that claims to be a keeper and does not end stops neither a load nor a teardown, whose
// keepers end all the same.
func TestUndyingKeeper(t *testing.T) {
	lab.NeedRoot(t)
	s := ownedGuard(t, nil)
	s.die()
	for range 4 {
		s.undying()
	}
	s.open()
	s.load(0)
	s.die()
	s.must(s.gw.Do(func() error { return Teardown(t.TempDir()) })) // which knows no lock of the keeper
	if !s.isGone(nftables.TableName) {
		t.Error("the guard is there")
	}
}
