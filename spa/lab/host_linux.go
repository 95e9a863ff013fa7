package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrClosed is returned by methods of a host after its Close.
var ErrClosed = errors.New("lab: host is closed")

// Host is a network namespace whose loopback interface is up. Its methods may be called from several goroutines.
type Host struct {
	name   string
	ns     *os.File        // the namespace
	route  *netlink.Handle // rtnetlink, inside
	starts chan start      // to the thread that starts processes
	gone   chan struct{}   // closed when that thread has ended

	mu      sync.Mutex
	closed  bool
	procs   []*exec.Cmd
	closers []io.Closer
}

type start struct {
	cmd    *exec.Cmd
	result chan error
}

// NewHost makes a host without links. The name only appears in error messages.
func NewHost(name string) (*Host, error) {
	h := &Host{name: name, starts: make(chan start), gone: make(chan struct{})}
	ready := make(chan error)
	go h.live(ready)
	if err := <-ready; err != nil {
		return nil, h.wrap("making the namespace", err)
	}
	if err := h.Do(h.setUp); err != nil {
		return nil, errors.Join(h.wrap("setting up", err), h.Close())
	}
	return h, nil
}

// live is the thread that makes the namespace and then starts the host's processes. They ask to be killed when the
// thread that started them ends, and the Go runtime may end any other thread while the process lives.
func (h *Host) live(ready chan<- error) {
	defer close(h.gone)
	runtime.LockOSThread()
	outside, err := currentNS()
	if err != nil {
		ready <- err
		return
	}
	defer outside.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		ready <- err
		runtime.UnlockOSThread()
		return
	}
	defer leave(outside)
	if h.ns, err = currentNS(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for s := range h.starts {
		s.result <- s.cmd.Start()
	}
}

// setUp runs inside. It switches duplicate address detection off, so that IPv6 addresses work at once. If /proc/sys is
// read-only (containers), it stays on for link-local addresses; other addresses are added without it.
func (h *Host) setUp() error {
	_ = sysctl("net.ipv6.conf.default.disable_ipv6", "0")
	_ = sysctl("net.ipv6.conf.all.disable_ipv6", "0")
	_ = sysctl("net.ipv6.conf.default.accept_dad", "0")
	var err error
	if h.route, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("opening rtnetlink: %w", err)
	}
	lo, err := h.route.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.route.LinkSetUp(lo)
}

// Name returns the name given to NewHost.
func (h *Host) Name() string { return h.name }

// Do runs fn on the calling goroutine while its thread is inside the host's network namespace. Calls may be nested; fn
// may end the goroutine (as t.Fatal does) or panic.
func (h *Host) Do(fn func() error) error {
	runtime.LockOSThread()
	outside, err := currentNS()
	if err != nil {
		runtime.UnlockOSThread()
		return h.wrap("entering", err)
	}
	defer outside.Close()
	if err := h.enter(); err != nil {
		runtime.UnlockOSThread()
		return h.wrap("entering", err)
	}
	defer leave(outside)
	return fn()
}

func (h *Host) enter() error {
	if h.isClosed() {
		return ErrClosed
	}
	return unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET)
}

// leave returns the thread to its own namespace. If that fails the thread stays locked, so the runtime ends it with its
// goroutine and no other goroutine runs inside.
func leave(outside *os.File) {
	if unix.Setns(int(outside.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
}

func currentNS() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// Start starts a process inside the host. Close kills it if it is still running, and the kernel does if this process
// dies (unless the program has changed its user). The caller must wait for it, as with exec.Cmd.Start.
func (h *Host) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return h.wrap("starting a process", ErrClosed)
	}
	result := make(chan error)
	h.starts <- start{cmd, result}
	if err := <-result; err != nil {
		return h.wrap("starting "+cmd.Path, err)
	}
	h.procs = append(h.procs, cmd)
	return nil
}

// Close kills the host's processes and those that they left behind, closes its servers and releases the namespace; the
// kernel removes it with its links once none of its sockets is open.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	var errs []error
	for _, cmd := range h.procs {
		errs = append(errs, kill(cmd))
	}
	h.killInside()
	for _, c := range h.closers {
		errs = append(errs, c.Close())
	}
	close(h.starts)
	<-h.gone
	if h.route != nil {
		h.route.Close()
	}
	return h.wrap("closing", errors.Join(append(errs, h.ns.Close())...))
}

// kill ends a process and waits until it has ended, but leaves its exit status to the caller of Start, who may be
// waiting for it.
func kill(cmd *exec.Cmd) error {
	err := cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	for {
		err = unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		switch err {
		case unix.EINTR:
		case nil, unix.ECHILD: // ECHILD: the caller has already taken the exit status
			return nil
		default:
			return err
		}
	}
}

func (h *Host) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// closeWith makes Close close c too.
func (h *Host) closeWith(c io.Closer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closers = append(h.closers, c)
}

// wrap adds the action and the host to an error; nil stays nil.
func (h *Host) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("lab: host %s: %s: %w", h.name, doing, err)
}
