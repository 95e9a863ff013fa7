package firewall

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/statefile"
	"sallyport/spa/sandbox"
)

// The keeper. A table belongs to a netlink socket, and what belongs to a socket that is
// closed anybody can flush. So a second process, which does nothing else, holds the
// daemon's socket too: the table has an owner also when the daemon was killed. It has no
// capability and can change nothing over that socket, and next to no system call. The next
// daemon ends it, behind a table that stands in for ours meanwhile.
//
// It is this program again. The daemon tells it by a pipe what to do; when the daemon is
// gone and it was told to hold, it stays. Who has to end it later finds it by a lock: it
// holds one on keeperFile, and the kernel tells whose a lock is. Without the file it ends.
// Whoever has another state directory finds it by a socket with an abstract name, which
// belongs to the network namespace, as the table does.
const (
	keeperName = "spa-keeper"
	// keeperArg is no option of any program: one that does not call Helper ends with it.
	keeperArg = "--keep-the-guard"

	keeperFile = "keeper" // in the state directory

	keeperStarts = 10 * time.Second // to start
	keeperEnds   = 2 * time.Second  // to end when asked, before it is killed

	// looks is how often at least is looked for what another process has to do: where the machine
	// stood still, the time for it is over before that process has had any.
	looks = 100
)

// Descriptors of the keeper.
const (
	keeperSocket = 3 + iota // of the table's owner
	keeperLock              // keeperFile
	keeperOrders            // what the daemon says
	keeperReady             // how it says that it is there
)

// Orders to the keeper. The end of the pipe means end, but hold where it was told to.
const (
	orderHold = 'h'
	orderEnd  = 'e'
)

// keeper is the process, as the daemon knows it.
type keeper struct {
	pid    int // 0: it has ended
	orders *os.File
	life   *os.File // ends with it
	holds  bool
	left   sandbox.State
}

// serveAsKeeper does not return where this process was started to be a keeper.
func serveAsKeeper() {
	if len(os.Args) != 2 || os.Args[0] != keeperName || os.Args[1] != keeperArg {
		return
	}
	callIt(keeperName)
	if keep() != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// callIt gives this process the name that ps and systemd show, which is "exe" otherwise, by how it was started.
// The kernel takes 15 bytes (proc(5), /proc/pid/comm).
func callIt(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(name), 0) // without it nothing but a name is wrong
}

// keep is what a keeper does. It returns when the table needs it no more.
func keep() error {
	// Before the right to read another user's file is given up: the state directory may be his.
	removal, err := watchRemoval(keeperLock)
	if err != nil {
		return err
	}
	if err := beFound(); err != nil {
		return err
	}
	left, err := sandbox.DropAll()
	if err != nil {
		return err
	}
	ready := os.NewFile(keeperReady, "ready")
	if err := gob.NewEncoder(ready).Encode(left); err != nil { // it stays open: its end says that this process has ended
		return err
	}
	debug.FreeOSMemory() // what starting needed: it may stay for months
	defer ready.Close()
	ended := make(chan error, 2)
	go func() { ended <- obey(os.NewFile(keeperOrders, "orders")) }()
	go func() { ended <- awaitRemoval(removal, keeperLock) }()
	return <-ended
}

// obey returns when the keeper is to end.
func obey(orders *os.File) error {
	var order [1]byte
	for holds := false; ; {
		_, err := orders.Read(order[:])
		switch {
		case err == io.EOF && holds:
			select {}
		case err != nil, order[0] == orderEnd:
			return nil
		case order[0] == orderHold:
			holds = true
			lock := unix.Flock_t{Type: unix.F_WRLCK}
			if err := unix.FcntlFlock(keeperLock, unix.F_SETLKW, &lock); err != nil {
				return err
			}
		}
	}
}

// watchRemoval returns an inotify descriptor for the file. It takes the owner's rights: under systemd root may lack the
// right to read other users' files.
func watchRemoval(fd int) (events int, err error) {
	if events, err = unix.InotifyInit1(unix.IN_CLOEXEC); err != nil {
		return 0, err
	}
	var file unix.Stat_t
	if err := unix.Fstat(fd, &file); err != nil {
		return 0, err
	}
	runtime.LockOSThread() // the file rights of this thread change
	defer runtime.UnlockOSThread()
	before, err := unix.SetfsuidRetUid(int(file.Uid))
	if err != nil {
		return 0, err
	}
	_, err = unix.InotifyAddWatch(events, "/proc/self/fd/"+strconv.Itoa(fd), unix.IN_ATTRIB)
	return events, errors.Join(err, unix.Setfsuid(before))
}

// awaitRemoval returns when the file is removed: nobody could find the keeper any more, and
// a table that nobody can be made to let go of would be in the way for ever.
func awaitRemoval(events, fd int) error {
	for b := make([]byte, 4096); ; {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Nlink == 0 {
			return err
		}
		if _, err := unix.Read(events, b); err != nil && err != unix.EINTR {
			return err
		}
	}
}

// foundBy begins the abstract names of keepers; what follows no other one has.
const foundBy = "@spa-keeper."

// beFound listens on a socket, and takes no connection: whoever connects is told by the kernel whose it is.
func beFound() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("%s%d.%d", foundBy, os.Getpid(),
		time.Now().UnixNano())}); err != nil {
		return err
	}
	return unix.Listen(fd, 16)
}

// endKeepers ends all keepers in this network namespace but one, whatever their state directory is.
func endKeepers(but *keeper) error {
	sockets, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return fmt.Errorf("looking for keepers of the guard: %w", err)
	}
	for line := range strings.Lines(string(sockets)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || !strings.HasPrefix(fields[len(fields)-1], foundBy) {
			continue
		}
		name := fields[len(fields)-1]
		pid := keeperBehind(name)
		if pid == 0 || but != nil && pid == but.pid || !isKeeper(pid) {
			continue
		}
		if err := endProcess(pid, func() bool { return keeperBehind(name) == pid }); err != nil {
			return fmt.Errorf("ending the keeper of the guard, process %d: %w", pid, err)
		}
	}
	return nil
}

// keeperBehind returns the process of root's, or of this user, that listens by the name; 0: there is none.
func keeperBehind(name string) int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return 0
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return 0
	}
	return int(cred.Pid)
}

// startKeeper starts a keeper of the socket. Until it is told to hold it ends with this
// process.
func startKeeper(lock *os.File, socket *netlink.Conn) (*keeper, error) {
	held, err := duplicate(socket)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	ordersEnd, orders, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ordersEnd.Close()
	ready, readyEnd, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, orders.Close())
	}
	p, err := os.StartProcess("/proc/self/exe", []string{keeperName, keeperArg}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1"},
		Files: []*os.File{null, null, null, held, lock, ordersEnd, readyEnd},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	readyEnd.Close()
	if err != nil {
		return nil, errors.Join(err, orders.Close(), ready.Close())
	}
	k := &keeper{pid: p.Pid, orders: orders, life: ready}
	p.Release() // it may outlive this process, and nobody waits for it
	if err := ready.SetReadDeadline(time.Now().Add(keeperStarts)); err != nil {
		return nil, errors.Join(err, k.end())
	}
	if err := gob.NewDecoder(ready).Decode(&k.left); err != nil {
		return nil, errors.Join(fmt.Errorf("it does not answer: %w", err), k.end())
	}
	return k, ready.SetReadDeadline(time.Time{})
}

// await reports whether the keeper has ended; false: ctx has, or there is none.
func (k *keeper) await(ctx context.Context) bool {
	if k == nil {
		return false
	}
	stop := context.AfterFunc(ctx, func() { k.life.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := k.life.Read(make([]byte, 1)) // it says nothing any more
	return err == io.EOF
}

// gone reports whether there was a keeper, and is none any more.
func (k *keeper) gone() bool { return k != nil && !k.lives() }

// duplicate is another descriptor of the same socket.
func duplicate(c *netlink.Conn) (*os.File, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var f *os.File
	var errno error
	err = raw.Control(func(fd uintptr) {
		var copied int
		if copied, errno = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); errno == nil {
			f = os.NewFile(uintptr(copied), "netlink")
		}
	})
	return f, errors.Join(err, errno)
}

// hold makes the keeper stay when this process is gone. One that has ended cannot; lives
// tells.
func (k *keeper) hold() {
	if k == nil || k.pid == 0 || k.holds {
		return
	}
	_, err := k.orders.Write([]byte{orderHold})
	k.holds = err == nil
}

// lives reports whether there is still a keeper.
func (k *keeper) lives() bool {
	if k == nil || k.pid == 0 {
		return false
	}
	if gone, err := unix.Wait4(k.pid, nil, unix.WNOHANG, nil); gone != 0 || err != nil {
		k.pid = 0
	}
	return k.pid != 0
}

// end ends the keeper.
func (k *keeper) end() error {
	if k == nil || k.pid == 0 {
		return nil
	}
	err := k.life.Close()            // first, so that ending it here is not reported
	k.orders.Write([]byte{orderEnd}) // if it has ended already, so be it
	err = errors.Join(err, k.orders.Close())
	give := time.Now().Add(keeperEnds)
	for n := 0; k.lives() && (n < looks || time.Now().Before(give)); n++ {
		time.Sleep(time.Millisecond)
	}
	if k.lives() {
		return errors.Join(err, errors.New("the keeper of the guard does not end"))
	}
	return err
}

// leave lets go of the keeper: it stays if it holds.
func (k *keeper) leave() error {
	if k == nil || k.pid == 0 {
		return nil
	}
	return errors.Join(k.orders.Close(), k.life.Close())
}

// openKeeperFile opens the file whose lock is the keeper's, or makes it.
func openKeeperFile(state string, create bool) (*os.File, error) {
	return statefile.Open(filepath.Join(state, keeperFile), create)
}

// openKeeperFile opens or makes the keeper file, which root or c.User owns.
func (c *Config) openKeeperFile() (*os.File, error) {
	var f *os.File
	err := statefile.AsOwner(c.User, func() (err error) { f, err = openKeeperFile(c.State, true); return err })
	return f, err
}

// endKeeper ends whatever keeper holds the lock, also one that an earlier process started.
func endKeeper(lock *os.File) error {
	for range 10 { // one that ends by itself meanwhile is no failure
		pid, err := lockHolder(lock)
		if err != nil || pid == 0 {
			return err
		}
		if !isKeeper(pid) {
			return fmt.Errorf("process %d holds the lock of the guard's keeper (%s) and is none: end it", pid, lock.Name())
		}
		err = endProcess(pid, func() bool { again, err := lockHolder(lock); return err == nil && again == pid })
		if err != nil {
			return fmt.Errorf("ending the keeper of the guard, process %d: %w", pid, err)
		}
	}
	return errors.New("the keeper of the guard does not end")
}

// lockHolder is the process that has locked the file; 0: none.
func lockHolder(f *os.File) (int, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var errno error
	err = raw.Control(func(fd uintptr) { errno = unix.FcntlFlock(fd, unix.F_GETLK, &lock) })
	if err := errors.Join(err, errno); err != nil {
		return 0, fmt.Errorf("looking for the keeper of the guard: %w", err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0, nil
	}
	return max(0, int(lock.Pid)), nil // below zero: locked by no single process, so by no keeper
}

// isKeeper reports whether the process calls itself one. The owner of the file can have any
// program of root's lock it, which must not be killed for that.
func isKeeper(pid int) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	ends := errors.Is(err, fs.ErrNotExist) || err == nil && len(args) == 0
	return ends || string(args) == keeperName+"\x00"+keeperArg+"\x00"
}

// endProcess ends a process that still is who it was, and waits for its end.
func endProcess(pid int, still func() bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !still() {
		return nil
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && err != unix.ESRCH {
			return err
		}
		if ended, err := awaitEnd(fd); err != nil || ended {
			return err
		}
	}
	return errors.New("it does not end")
}

// awaitEnd waits for the end of a process, as long as that may take.
func awaitEnd(pidfd int) (ended bool, err error) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for give := time.Now().Add(keeperEnds); ; {
		left := max(0, time.Until(give))
		n, err := unix.Poll(fds, int(left.Milliseconds()))
		switch {
		case err == unix.EINTR: // a signal says nothing of the process
		case err != nil || n > 0:
			return n > 0, err
		case left == 0:
			return false, nil
		}
	}
}
