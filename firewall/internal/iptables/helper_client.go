package iptables

import (
	"cmp"
	"encoding/gob"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startTime is how long the helper may take to find the programs and probe the kernel.
	startTime = 2 * time.Minute
	// answerTime is how long any other request may take: several programs, one after another, on a busy machine. A
	// helper that exceeds it is not used again.
	answerTime = 2 * time.Minute
)

// ErrHelper is wrapped by the errors of all calls once the helper has ended or hangs.
var ErrHelper = errors.New("the helper that runs iptables has ended or hangs; the guard stays in place and grants " +
	"end on time, but changes by other tools cannot be repaired: restart spa-server")

// Helper is the daemon's end of the process that runs iptables.
type Helper struct {
	Programs
	pid      int
	conn     net.Conn
	ended    chan struct{} // closed when the process has ended
	Patience time.Duration // how long to wait for a reply

	mu  sync.Mutex // guards the order of requests and replies
	in  *gob.Decoder
	out *gob.Encoder

	fate sync.Mutex // guards the field below
	gone error      // why there are no more replies
}

// startHelper starts this program again as the helper, in the network namespace of the calling thread, and waits for
// its findings. It searches programs in path (empty: the usual directories); kind, if not empty, selects one kind of
// iptables.
func startHelper(path, kind, lock string) (*Helper, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("starting the helper for iptables: %w", os.NewSyscallError("socketpair", err))
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "helper"), os.NewFile(uintptr(pair[1]), "daemon")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("starting the helper for iptables: %w", err)
	}
	h := &Helper{conn: conn, ended: make(chan struct{}), Patience: answerTime, in: gob.NewDecoder(conn),
		out: gob.NewEncoder(conn)}
	if err := h.start(theirs, cmp.Or(path, programPath), kind, cmp.Or(lock, LockPath)); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the helper for iptables: %w", err), conn.Close())
	}
	if err := h.greet(); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// start starts the process, and waits for its end in a thread of its own: the kernel kills the helper when the thread
// that started it ends.
func (h *Helper) start(socket *os.File, args ...string) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{HelperName, HelperArg}, args...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{socket}
	// Use a separate process group, so that keys typed at a terminal do not end the helper first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
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
		defer close(h.ended)
		err := enterNamespace(ns)
		if err == nil {
			err = cmd.Start()
		}
		if err == nil {
			h.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			h.over(cmd.Wait())
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

// over records how the process ended. A caller waiting for a reply sees the socket close.
func (h *Helper) over(err error) {
	if err == nil {
		err = errors.New("it exited")
	}
	h.fail(err)
}

// fail keeps the first reason why there are no more replies, and returns it.
func (h *Helper) fail(err error) error {
	h.fate.Lock()
	defer h.fate.Unlock()
	if h.gone == nil {
		h.gone = fmt.Errorf("%w (%w)", ErrHelper, err)
	}
	return h.gone
}

// trouble returns why the helper can no longer be used, or nil.
func (h *Helper) trouble() error {
	h.fate.Lock()
	defer h.fate.Unlock()
	return h.gone
}

// greet receives the helper's findings.
func (h *Helper) greet() error {
	if err := h.conn.SetReadDeadline(time.Now().Add(startTime)); err != nil {
		return err
	}
	if err := h.in.Decode(&h.Programs); err != nil {
		return fmt.Errorf("the helper for iptables did not start: %w", err)
	}
	if h.Trouble != "" {
		return fmt.Errorf("iptables cannot guard: %s", h.Trouble)
	}
	return nil
}

// Ask sends a request to the helper and returns the reply. If another program holds the lock of iptables, it returns
// errBusy.
func (h *Helper) Ask(r Request) (reply, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.trouble(); err != nil {
		return reply{}, err
	}
	var answer reply
	err := h.conn.SetDeadline(time.Now().Add(h.Patience))
	if err == nil {
		err = h.out.Encode(r)
	}
	if err == nil {
		err = h.in.Decode(&answer)
	}
	if err != nil {
		return reply{}, h.lost(err)
	}
	switch answer.Outcome {
	case done:
		return answer, nil
	case busy:
		return reply{}, fmt.Errorf("%w (%s)", errBusy, answer.Text)
	case foreign:
		return reply{}, foreignError(answer.Text)
	}
	return reply{}, fmt.Errorf("iptables: %s", answer.Text)
}

// lost returns the error of a request without a reply. The helper cannot be used any more: its next reply would be
// the one to this request.
func (h *Helper) lost(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("no reply for %v", h.Patience)
	} else {
		h.awaitEnd() // its exit status says more than the closed socket
	}
	err = h.fail(err)
	h.conn.Close()
	return err
}

// awaitEnd waits a second for the process to end.
func (h *Helper) awaitEnd() {
	late := time.NewTimer(time.Second)
	defer late.Stop()
	select {
	case <-h.ended:
	case <-late.C:
	}
}

// close makes the helper end. If it does not, the kernel kills it when this process ends.
func (h *Helper) close() error {
	err := h.conn.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	h.awaitEnd()
	return err
}
