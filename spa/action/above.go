package action

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var errAlone = errors.New("the process above the program was killed, and what the program had started after it")

// above starts the process above a program, passes on what it reports, and returns the last of that. If that process is
// killed, so is all that the program has started.
func (r *runner) above(t task, report func(Event)) (over Event) {
	over.What = Failed
	err := func() error {
		in, tell, err := os.Pipe()
		if err != nil {
			return err
		}
		defer in.Close()
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = []string{aboveName, aboveArg}
		cmd.Env = []string{"GOMAXPROCS=1"}
		cmd.Dir = "/"
		cmd.Stderr = os.Stderr
		cmd.ExtraFiles = []*os.File{tell}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		to, err := cmd.StdinPipe()
		if err == nil {
			err = r.start(cmd)
		}
		tell.Close()
		if err != nil {
			return err
		}
		late := time.AfterFunc(t.Timeout+2*t.Grace, func() { _ = cmd.Process.Kill() }) // it was stopped
		defer late.Stop()
		defer r.ended(cmd)
		sent := errors.Join(json.NewEncoder(to).Encode(t), to.Close())
		for from := json.NewDecoder(in); ; report(over) {
			var e Event
			if err := from.Decode(&e); err != nil {
				err := cmd.Wait()
				r.sweep()
				return errors.Join(errAlone, sent, err)
			}
			if over = e; e.over() {
				return cmd.Wait()
			}
		}
	}()
	if err != nil && over.What != Failed {
		over.What = Lost
	}
	if err != nil {
		over.Text = err.Error()
	}
	return over
}

func (r *runner) start(cmd *exec.Cmd) error {
	r.starting.Lock()
	defer r.starting.Unlock()
	err := cmd.Start()
	if err == nil {
		r.aboves[cmd.Process.Pid] = true
	}
	return err
}

func (r *runner) ended(cmd *exec.Cmd) {
	r.starting.Lock()
	defer r.starting.Unlock()
	delete(r.aboves, cmd.Process.Pid)
}

// sweep kills what programs have left behind whose process above was killed: that has become this process's.
func (r *runner) sweep() {
	for left := r.orphans(); len(left) > 0; left = r.orphans() {
		signalTo(left, unix.SIGKILL)
		for _, pid := range left {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // if not yet, then soon
		}
		time.Sleep(again)
	}
}

// orphans returns the children that this process has not started.
func (r *runner) orphans() []int {
	r.starting.Lock()
	defer r.starting.Unlock()
	return slices.DeleteFunc(childrenOf(os.Getpid()), func(pid int) bool { return r.aboves[pid] })
}
