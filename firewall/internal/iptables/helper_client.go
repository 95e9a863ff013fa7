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
	// startTime is how long the helper may take to find out what there is.
	startTime = 2 * time.Minute
	// answerTime is how long it may take for anything else: several programs, one after another,
	// on a machine that is busy. A helper that is given up is of no use any more.
	answerTime = 2 * time.Minute
)

// ErrHelper is wrapped by the error of every call once the helper has ended or hangs.
var ErrHelper = errors.New("the helper that runs iptables is gone; the guard stays as it is and grants end on time, " +
	"but nothing can be put back: start spa-server again")

// Helper is the daemon's end of the process that runs iptables.
type Helper struct {
	Programs
	pid      int
	conn     net.Conn
	ended    chan struct{} // closed when the process has
	Patience time.Duration // how long an answer may take

	mu  sync.Mutex // guards the order of questions and answers
	in  *gob.Decoder
	out *gob.Encoder

	fate sync.Mutex // guards what follows
	gone error      // why there are no more answers
}

// startHelper starts this program again as the helper, in the network namespace of the
// calling thread, and waits until it has found out what there is. Programs are looked for
// in path (empty: where systems have them), those of one kind if it is named.
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
	if err := h.start(theirs, cmp.Or(path, programPath), kind, cmp.Or(lock, lockPath)); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the helper for iptables: %w", err), conn.Close())
	}
	if err := h.greet(); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// start starts the process and waits for its end in a thread of its own: the kernel kills
// the helper when the thread that started it ends.
func (h *Helper) start(socket *os.File, args ...string) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{HelperName, HelperArg}, args...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{socket}
	// In a group of its own, so that what is typed at a terminal does not end it first.
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

// enterNamespace makes a network namespace that of this thread, if it is not already.
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

// over is told how the process ended. Who waits for an answer sees the end of the socket.
func (h *Helper) over(err error) {
	if err == nil {
		err = errors.New("it ended by itself")
	}
	h.fail(err)
}

// fail keeps the first reason why there are no more answers, and returns it.
func (h *Helper) fail(err error) error {
	h.fate.Lock()
	defer h.fate.Unlock()
	if h.gone == nil {
		h.gone = fmt.Errorf("%w (%w)", ErrHelper, err)
	}
	return h.gone
}

// trouble is why the helper is of no use any more, or nil.
func (h *Helper) trouble() error {
	h.fate.Lock()
	defer h.fate.Unlock()
	return h.gone
}

// greet takes what the helper found.
func (h *Helper) greet() error {
	if err := h.conn.SetReadDeadline(time.Now().Add(startTime)); err != nil {
		return err
	}
	if err := h.in.Decode(&h.Programs); err != nil {
		return fmt.Errorf("the helper for iptables does not answer: %w", err)
	}
	if h.Trouble != "" {
		return fmt.Errorf("iptables cannot guard: %s", h.Trouble)
	}
	return nil
}

// Ask asks the helper. Where another program holds the lock of iptables that is errBusy.
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

// lost is the error of a question that got no answer. The helper is of no use any more: what
// it answers next would be the answer to this one.
func (h *Helper) lost(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("it has not answered for %v", h.Patience)
	} else {
		h.awaitEnd() // which says more than that the socket was closed
	}
	err = h.fail(err)
	h.conn.Close()
	return err
}

// awaitEnd waits for the process to end, not for ever.
func (h *Helper) awaitEnd() {
	late := time.NewTimer(time.Second)
	defer late.Stop()
	select {
	case <-h.ended:
	case <-late.C:
	}
}

// close lets the helper end. One that does not is killed when this process ends.
func (h *Helper) close() error {
	err := h.conn.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	h.awaitEnd()
	return err
}
