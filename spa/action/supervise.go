package action

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"sallyport/keys/quote"
)

// task is what the runner tells the process above a program.
type task struct {
	Command     []string      `json:"command"`
	Environment []string      `json:"environment"`
	UID         int           `json:"uid"`
	GID         int           `json:"gid"`
	Groups      []uint32      `json:"groups"`
	Timeout     time.Duration `json:"timeout"`
	Grace       time.Duration `json:"grace"`
}

// reports is the descriptor on which the process above a program tells the runner what becomes of it.
const reports = 3

// again is how often the killing of what is left is repeated.
const again = 50 * time.Millisecond

// supervise runs the program that standard input describes, and reports what becomes of it.
func supervise() error {
	var t task
	if err := json.NewDecoder(os.Stdin).Decode(&t); err != nil {
		return err
	}
	unix.CloseOnExec(reports)
	_ = unix.CloseRange(reports, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // of others, since Linux 5.11
	s := &supervisor{task: t, to: json.NewEncoder(os.NewFile(reports, "runner"))}
	survive()
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	output, err := s.start()
	if err != nil {
		s.report(Event{What: Failed, Text: err.Error()})
		return nil
	}
	s.report(Event{What: Started})
	read := make(chan int64, 1)
	go func() { read <- pass(output, s.report) }()
	s.wait(children)
	_ = output.SetReadDeadline(time.Now().Add(time.Second)) // someone else may have been given the descriptor
	s.end.Dropped = <-read
	s.report(s.end)
	return nil
}

// survive makes the process outlive signals for its whole group. They are caught, because programs would inherit that
// they are ignored.
func survive() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
}

type supervisor struct {
	task
	pid int // of the program
	end Event

	mu sync.Mutex // guards the order of reports
	to *json.Encoder
}

func (s *supervisor) report(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.to.Encode(e) // the runner may have ended
}

// start starts the program. The process has become the one that inherits orphans.
func (s *supervisor) start() (output *os.File, err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return nil, err
	}
	output, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attributes := &syscall.ProcAttr{
		Dir: "/", Env: s.Environment, Files: []uintptr{null.Fd(), theirs.Fd(), theirs.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}, // a program may change that: see sweep
	}
	if s.UID != os.Geteuid() {
		attributes.Sys.Credential = &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID), Groups: s.Groups}
	}
	runtime.LockOSThread() // what follows is this thread's, and its child's
	defer runtime.UnlockOSThread()
	if s.UID != 0 {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return nil, os.NewSyscallError("prctl", err)
		}
	}
	if err := handOnNothing(); err != nil {
		return nil, err
	}
	if s.pid, err = syscall.ForkExec(s.Command[0], s.Command, attributes); err != nil {
		return nil, fmt.Errorf("starting %s: %w", s.Command[0], err)
	}
	return output, nil
}

// handOnNothing keeps the program from having this process's capabilities.
func handOnNothing() error {
	if err := cap.ResetAmbient(); err != nil {
		return fmt.Errorf("clearing the ambient capabilities: %w", err)
	}
	set := cap.GetProc()
	if err := set.ClearFlag(cap.Inheritable); err != nil {
		return err
	}
	return set.SetProc()
}

// pass reports the lines of the output, as much as is passed on, and returns how many bytes were not.
func pass(output io.Reader, report func(Event)) (dropped int64) {
	left := &io.LimitedReader{R: output, N: MaxOutput}
	lines := bufio.NewScanner(left)
	lines.Buffer(make([]byte, MaxOutput), MaxOutput+1)
	for n := 0; lines.Scan(); n++ {
		if n >= MaxLines {
			dropped += int64(len(lines.Bytes())) + 1
			continue
		}
		text := strings.TrimSpace(quote.Printable(strings.ReplaceAll(lines.Text(), "\t", " ")))
		if text != "" {
			report(Event{What: Printed, Text: text})
		}
	}
	rest, _ := io.Copy(io.Discard, output) // ends when the output does
	return dropped + rest
}

// wait returns when all that the program has left behind is gone, at the latest when its time is over and everything
// was killed.
func (s *supervisor) wait(children <-chan os.Signal) {
	over := time.NewTimer(s.Timeout)
	defer over.Stop()
	stage := 0 // then SIGTERM, then SIGKILL
	for !s.reap() {
		select {
		case <-children:
			if stage < 2 {
				continue
			}
		case <-over.C:
			if stage++; stage == 1 {
				s.end.What = TooLong
				signalTo(childrenOf(os.Getpid()), unix.SIGTERM)
				over.Reset(s.Grace)
				continue
			}
			over.Reset(again)
		}
		signalTo(childrenOf(os.Getpid()), unix.SIGKILL) // what was below these comes next
	}
}

// reap collects the children that have ended, and reports whether there are no more.
func (s *supervisor) reap() (none bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return true
		case pid == 0:
			return false
		case pid == s.pid:
			s.conclude(status)
		}
	}
}

// conclude keeps how the program ended, unless its time was over.
func (s *supervisor) conclude(status unix.WaitStatus) {
	switch {
	case s.end.What == TooLong:
	case status.Signaled():
		s.end.What, s.end.Exit = Killed, int(status.Signal())
	default:
		s.end.What, s.end.Exit = Ended, status.ExitStatus()
	}
}

// signalTo sends a signal to the groups of children, those that have become this process's children among them. It does
// not signal this process. A child that has ended is not reaped yet, so no number means another process.
func signalTo(children []int, with unix.Signal) {
	own := unix.Getpgrp()
	for _, pid := range children {
		if group, err := unix.Getpgid(pid); err == nil && group != own && group > 1 {
			_ = unix.Kill(-group, with) // it may just have ended
			continue
		}
		_ = unix.Kill(pid, with)
	}
}

// childrenOf returns the children of a process of ours. Not every kernel lists them (CONFIG_PROC_CHILDREN).
func childrenOf(parent int) []int {
	var pids []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	for _, list := range lists {
		text, _ := os.ReadFile(list) // the thread may have ended
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	if len(lists) > 0 {
		return pids
	}
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && parentOf(pid) == parent {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parentOf returns the parent of a process (proc_pid_stat(5)); 0: it is gone.
func parentOf(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	text := string(stat)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}
