// Package keeper runs the process that keeps other tools from flushing the guard's table after the daemon was killed.
//
// A table belongs to a netlink socket, and any tool can flush a table whose socket is closed. So a second process,
// the keeper, holds the daemon's socket open too. It has no capabilities and next to no system calls, and can change
// nothing over that socket. The next daemon ends it, behind a standby table.
//
// The keeper is this program, started again. The daemon sends it orders over a pipe. After the order to hold, it
// stays when the daemon ends. It holds a lock on a file in the state directory; the kernel reports the lock's holder,
// so the keeper can be found and ended. It also ends when that file is removed. Programs with another state directory
// find it by a socket with an abstract name, which belongs to the network namespace, as the table does.
package keeper

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/statefile"
	"sallyport/spa/helper"
	"sallyport/spa/sandbox"
)

const (
	Name = "spa-keeper"
	// arg is not an option of any program: a program that does not call firewall.Helper fails on it.
	arg = "--keep-the-guard"

	FileName = "keeper" // in the state directory

	starts = 10 * time.Second // to start
	Ends   = 2 * time.Second  // to end when asked, before it is killed

	// Looks is the least number of checks for something that another process must do. If the machine was paused, a
	// time limit alone would pass before that process could run.
	Looks = 100
)

// Descriptors of the keeper.
const (
	descriptorSocket = 3 + iota // netlink socket of the table's owner
	descriptorLock              // the file FileName
	descriptorOrders            // orders from the daemon
	descriptorReady             // the keeper reports here that it has started
)

// Orders to the keeper. When the pipe closes, the keeper ends, unless it was ordered to hold.
const (
	orderHold = 'h'
	orderEnd  = 'e'
)

// Keeper is the daemon's view of the process.
type Keeper struct {
	PID        int // 0: the process has ended
	orders     *os.File
	life       *os.File // closes when the process ends
	holds      bool
	Privileges sandbox.State
}

// Serve runs the keeper and never returns, if this process was started as one.
func Serve() {
	if len(os.Args) != 2 || os.Args[0] != Name || os.Args[1] != arg {
		return
	}
	helper.CallProcess(Name)
	if keep() != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// keep is the keeper's work. It returns when the table no longer needs it.
func keep() error {
	// This comes before dropping the right to read other users' files: another user may own the state directory.
	removal, err := watchRemoval(descriptorLock)
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
	ready := os.NewFile(descriptorReady, "ready")
	if err := gob.NewEncoder(ready).Encode(left); err != nil { // stays open: its end means that this process has ended
		return err
	}
	debug.FreeOSMemory() // the keeper may run for months and no longer needs what starting took
	defer ready.Close()
	ended := make(chan error, 2)
	go func() { ended <- obey(os.NewFile(descriptorOrders, "orders")) }()
	go func() { ended <- awaitRemoval(removal, descriptorLock) }()
	return <-ended
}

// obey returns when the keeper must end.
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
			if err := unix.FcntlFlock(descriptorLock, unix.F_SETLKW, &lock); err != nil {
				return err
			}
		}
	}
}

// watchRemoval returns an inotify descriptor for the file. It uses the rights of the file's owner: under systemd,
// root may lack the right to read other users' files.
func watchRemoval(fd int) (events int, err error) {
	if events, err = unix.InotifyInit1(unix.IN_CLOEXEC); err != nil {
		return 0, err
	}
	var file unix.Stat_t
	if err := unix.Fstat(fd, &file); err != nil {
		return 0, err
	}
	watch := func() error {
		_, err := unix.InotifyAddWatch(events, "/proc/self/fd/"+strconv.Itoa(fd), unix.IN_ATTRIB)
		return err
	}
	if os.Geteuid() != 0 {
		return events, watch()
	}
	runtime.LockOSThread() // the file rights of this thread change
	defer runtime.UnlockOSThread()
	before, err := unix.SetfsuidRetUid(int(file.Uid))
	if err != nil {
		return 0, err
	}
	return events, errors.Join(watch(), unix.Setfsuid(before))
}

// awaitRemoval returns when the file is removed: without it the keeper could no longer be found, and its table never
// be released.
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

// foundBy begins the abstract name of every keeper's socket; the rest of the name is unique.
const foundBy = "@spa-keeper."

// beFound listens on a socket without accepting connections: the kernel reports the listener's process to each peer
// that connects.
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

// EndAll ends all keepers in this network namespace except one, whatever their state directories. Root ends those of
// every user: the server may run as its own.
func EndAll(but *Keeper) error {
	return endAll(but, func(uid int) bool { return uid == 0 || os.Geteuid() == 0 || uid == os.Geteuid() })
}

// EndOwn ends all keepers in this network namespace that this process's user started.
func EndOwn() error { return endAll(nil, func(uid int) bool { return uid == os.Geteuid() }) }

func endAll(but *Keeper, of func(uid int) bool) error {
	sockets, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return fmt.Errorf("looking for the guard's keepers: %w", err)
	}
	names := make(map[int]string) // of the sockets, by process
	for line := range strings.Lines(string(sockets)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || !strings.HasPrefix(fields[len(fields)-1], foundBy) {
			continue
		}
		name := fields[len(fields)-1]
		if pid := behind(name, of); pid != 0 && (but == nil || pid != but.PID) && isKeeper(pid) {
			names[pid] = name
		}
	}
	return endProcesses(slices.Collect(maps.Keys(names)), func(pid int) bool { return behind(names[pid], of) == pid })
}

// behind returns the process that listens at the name, if it is of such a user; 0: none.
func behind(name string, of func(uid int) bool) int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		return 0
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || !of(int(cred.Uid)) {
		return 0
	}
	return int(cred.Pid)
}

// Start starts a keeper of the socket. Until it is ordered to hold, it ends with this process.
func Start(lock *os.File, socket *netlink.Conn) (*Keeper, error) {
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
	p, err := os.StartProcess("/proc/self/exe", []string{Name, arg}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1"},
		Files: []*os.File{null, null, null, held, lock, ordersEnd, readyEnd},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	readyEnd.Close()
	if err != nil {
		return nil, errors.Join(err, orders.Close(), ready.Close())
	}
	k := &Keeper{PID: p.Pid, orders: orders, life: ready}
	p.Release() // it may outlive this process, which does not wait for it
	if err := ready.SetReadDeadline(time.Now().Add(starts)); err != nil {
		return nil, errors.Join(err, k.End())
	}
	if err := gob.NewDecoder(ready).Decode(&k.Privileges); err != nil {
		return nil, errors.Join(fmt.Errorf("it did not start: %w", err), k.End())
	}
	return k, ready.SetReadDeadline(time.Time{})
}

// Await waits until the keeper has ended. It returns false if ctx ended first or there is no keeper.
func (k *Keeper) Await(ctx context.Context) bool {
	if k == nil {
		return false
	}
	stop := context.AfterFunc(ctx, func() { k.life.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := k.life.Read(make([]byte, 1)) // the keeper writes nothing more
	return err == io.EOF
}

// Gone reports whether there was a keeper and it has ended.
func (k *Keeper) Gone() bool { return k != nil && !k.Lives() }

// duplicate returns another descriptor of the socket.
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

// Hold makes the keeper stay when this process ends. It has no effect on a keeper that has ended: see Lives.
func (k *Keeper) Hold() {
	if k == nil || k.PID == 0 || k.holds {
		return
	}
	_, err := k.orders.Write([]byte{orderHold})
	k.holds = err == nil
}

// Lives reports whether the keeper is running.
func (k *Keeper) Lives() bool {
	if k == nil || k.PID == 0 {
		return false
	}
	if gone, err := unix.Wait4(k.PID, nil, unix.WNOHANG, nil); gone != 0 || err != nil {
		k.PID = 0
	}
	return k.PID != 0
}

// End ends the keeper and waits for it.
func (k *Keeper) End() error {
	if k == nil || k.PID == 0 {
		return nil
	}
	err := k.life.Close()            // first, so that Await does not report this end
	k.orders.Write([]byte{orderEnd}) // fails if it has already ended, which is fine
	err = errors.Join(err, k.orders.Close())
	give := time.Now().Add(Ends)
	for n := 0; k.Lives() && (n < Looks || time.Now().Before(give)); n++ {
		time.Sleep(time.Millisecond)
	}
	if k.Lives() {
		return errors.Join(err, errors.New("the guard's keeper does not end"))
	}
	return err
}

// Leave closes the pipes to the keeper. It stays if it was ordered to hold.
func (k *Keeper) Leave() error {
	if k == nil || k.PID == 0 {
		return nil
	}
	return errors.Join(k.orders.Close(), k.life.Close())
}

// OpenFile opens the file in the state directory that the keeper locks. With create it makes a missing one, and root
// or user may own it.
func OpenFile(state, user string, create bool) (*os.File, error) {
	var f *os.File
	err := statefile.AsOwner(user, func() (err error) {
		f, err = statefile.Open(filepath.Join(state, FileName), create)
		return err
	})
	return f, err
}

// EndHolder ends the keeper that holds the lock, even if an earlier process started it.
func EndHolder(lock *os.File) error {
	for range 10 { // a keeper that ends in the meantime is no failure
		pid, err := LockHolder(lock)
		if err != nil || pid == 0 {
			return err
		}
		if !isKeeper(pid) {
			return fmt.Errorf("process %d holds the lock of the keeper (%s) but is not a keeper: end it", pid, lock.Name())
		}
		held := func(pid int) bool { again, err := LockHolder(lock); return err == nil && again == pid }
		if err := endProcesses([]int{pid}, held); err != nil {
			return err
		}
	}
	return errors.New("the guard's keeper does not end")
}

// LockHolder returns the process that has locked the file; 0: none.
func LockHolder(f *os.File) (int, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var errno error
	err = raw.Control(func(fd uintptr) { errno = unix.FcntlFlock(fd, unix.F_GETLK, &lock) })
	if err := errors.Join(err, errno); err != nil {
		return 0, fmt.Errorf("looking for the guard's keeper: %w", err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0, nil
	}
	return max(0, int(lock.Pid)), nil // below zero: not the lock of a single process, so not a keeper's
}

// isKeeper reports whether the command line of the process is a keeper's. The owner of the file could make any of
// root's programs lock it, and such a program must not be killed.
func isKeeper(pid int) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	ends := errors.Is(err, fs.ErrNotExist) || err == nil && len(args) == 0
	return ends || string(args) == Name+"\x00"+arg+"\x00"
}

// endProcesses ends keepers and waits for their ends, provided that still reports that each is the same process. Any
// user can have processes that claim to be keepers and do not end: they must not keep it from ending the others, and
// many must not take longer than one.
func endProcesses(pids []int, still func(pid int) bool) error {
	left := make(map[int]int) // pidfds
	defer func() {
		for _, fd := range left {
			unix.Close(fd)
		}
	}()
	var failed error
	for _, pid := range pids {
		switch fd, err := unix.PidfdOpen(pid, 0); {
		case err == nil:
			left[pid] = fd
		case err != unix.ESRCH:
			failed = notEnded(pid, err)
		}
	}
	maps.DeleteFunc(left, func(pid, fd int) bool { return !still(pid) && unix.Close(fd) == nil })
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := signalAll(left, signal); err != nil {
			failed = err
		}
	}
	for pid := range left {
		return notEnded(pid, errors.New("it does not end"))
	}
	return failed
}

func notEnded(pid int, err error) error {
	return fmt.Errorf("ending the guard's keeper, process %d: %w", pid, err)
}

// signalAll sends a signal to processes, and removes those that end in the time that one may take.
func signalAll(left map[int]int, signal unix.Signal) (failed error) {
	for pid, fd := range left {
		if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && err != unix.ESRCH {
			failed = notEnded(pid, err)
		}
	}
	give := time.Now().Add(Ends)
	maps.DeleteFunc(left, func(pid, fd int) bool {
		ended, err := awaitEnd(fd, give)
		if err != nil {
			failed = notEnded(pid, err)
		}
		return ended && unix.Close(fd) == nil
	})
	return failed
}

// awaitEnd waits for a process to end.
func awaitEnd(pidfd int, give time.Time) (ended bool, err error) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		left := max(0, time.Until(give))
		remaining := unix.NsecToTimespec(left.Nanoseconds())
		n, err := unix.Ppoll(fds, &remaining, nil)
		switch {
		case err == unix.EINTR: // interrupted by a signal: poll again
		case err != nil || n > 0:
			return n > 0, err
		case left == 0:
			return false, nil
		}
	}
}
