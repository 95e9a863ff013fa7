// Package helper starts this program again as a process that works for the daemon with other privileges: it starts
// programs, which the daemon itself cannot do once it has dropped its own.
//
// Daemon and helper talk over a socket pair that only they have, so neither needs to find out who the other is.
package helper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// descriptor is the helper's end of the socket.
const descriptor = 3

// Process is the daemon's view of a helper.
type Process struct {
	PID   int
	Conn  net.Conn
	Ended chan struct{} // closed when the process has ended
}

// Start starts this program again under a name and with arguments, without an environment, in the network namespace
// of the calling thread. If it must not outlive this process, the kernel kills it then. Over is called when it has
// ended, with the reason.
func Start(name string, outlives bool, over func(error), args ...string) (*Process, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "helper"), os.NewFile(uintptr(pair[1]), "daemon")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	p := &Process{Conn: conn, Ended: make(chan struct{})}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{name}, args...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	// Use a separate process group, so that keys typed at a terminal do not end the helper first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !outlives {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := p.start(cmd, over); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return p, nil
}

// start starts the process, and waits for its end in a thread of its own: the kernel takes the end of the thread that
// started the helper for the end of this process.
func (p *Process) start(cmd *exec.Cmd, over func(error)) error {
	runtime.LockOSThread()
	ns, err := os.Open("/proc/thread-self/ns/net")
	runtime.UnlockOSThread()
	if err != nil {
		return err
	}
	defer ns.Close()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		defer close(p.Ended)
		err := enterNamespace(ns)
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			p.PID = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			over(cmd.Wait())
		}
	}()
	return <-started
}

// enterNamespace moves this thread into a network namespace, unless it is already there.
func enterNamespace(ns *os.File) error {
	var want, have unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &want); err != nil {
		return err
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &have); err != nil {
		return err
	}
	if want.Ino == have.Ino && want.Dev == have.Dev {
		return nil
	}
	return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
}

// AwaitEnd waits a second for the process to end.
func (p *Process) AwaitEnd() {
	late := time.NewTimer(time.Second)
	defer late.Stop()
	select {
	case <-p.Ended:
	case <-late.C:
	}
}

// Close closes the socket, upon which the helper ends, and waits a second for that.
func (p *Process) Close() error {
	err := p.Conn.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	p.AwaitEnd()
	return err
}

// Daemon returns the helper's end of the socket. Call it in the helper, once.
func Daemon() (net.Conn, error) {
	socket := os.NewFile(descriptor, "daemon")
	conn, err := net.FileConn(socket)
	if err != nil {
		return nil, fmt.Errorf("only spa-server starts this program: %w", err)
	}
	return conn, socket.Close()
}

// CallProcess sets the name that ps and systemd show for this process, which would otherwise be "exe". The kernel
// takes 15 bytes (proc(5), /proc/pid/comm).
func CallProcess(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(name), 0) // a failure costs only the name
}

// Lent returns an error if this process got privileges that its starter lacks: by file capabilities, or a set-user-id
// bit.
func Lent() error {
	const secure = 23 // AT_SECURE of linux/auxvec.h
	vector, err := unix.Auxv()
	if err == nil && slices.Contains(vector, [2]uintptr{secure, 0}) {
		return nil
	}
	return errors.New("the program has its privileges from its file, so any user could start it like this and make it " +
		"run other programs; start spa-server as root, or with ambient capabilities")
}
