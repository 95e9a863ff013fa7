package action

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"sallyport/spa/config"
	"sallyport/spa/helper"
)

// Names of the processes, by which they also recognize themselves. The arguments are options of no program.
const (
	runnerName = "spa-runner"
	runnerArg  = "--run-actions"
	aboveName  = "spa-action"
	aboveArg   = "--run-one-action"
)

// mostRequest is the length of the longest request: one with server.toml, in base64.
const mostRequest = 2 << 20

// request is what the daemon asks of the runner.
type request struct {
	Number   uint64    `json:"number"`
	Settings *settings `json:"settings,omitempty"` // the first request: what is in force
	Read     bool      `json:"read,omitempty"`     // read server.toml, and use that
	Back     bool      `json:"back,omitempty"`     // use what was used before
	Job      *Job      `json:"job,omitempty"`      // start a program
}

// settings are those that the server starts with: server.toml, or its last good version.
type settings struct {
	Dir  string `json:"dir"`
	Text []byte `json:"text"`
}

// answer is what the runner reports.
type answer struct {
	Number  uint64 `json:"number"`            // of the request
	Trouble string `json:"trouble,omitempty"` // why it was refused
	// Unfit and Text follow settings: the services whose programs cannot be started, and why; and what was read.
	Unfit map[string]string `json:"unfit,omitempty"`
	Text  []byte            `json:"text,omitempty"`
	Event *Event            `json:"event,omitempty"` // of a job
}

// Serve must be called at the start of the main function of a program that makes a [Runner], and of the TestMain of its
// tests. In a process that is the runner, or the one above a program, it does that work and never returns; in any other
// it returns at once.
func Serve() {
	if len(os.Args) != 2 {
		return
	}
	work := map[[2]string]func() error{{runnerName, runnerArg}: serve, {aboveName, aboveArg}: supervise}
	do, ok := work[[2]string{os.Args[0], os.Args[1]}]
	if !ok {
		return
	}
	helper.CallProcess(os.Args[0])
	if err := errors.Join(helper.Lent(), keepNeeded()); err != nil {
		fmt.Fprintln(os.Stderr, os.Args[0]+":", err)
		os.Exit(1)
	}
	if err := do(); err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, os.Args[0]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// keepNeeded drops all capabilities but those to start programs of other users and to end them. Where the process is
// not root's, it hands them on to the one above a program. The firewall is out of reach for it, and for all programs
// except root's, which have what their unit allows.
func keepNeeded() error {
	set := cap.NewSet()
	var kept []cap.Value
	for _, value := range needed {
		if has, err := cap.GetProc().GetFlag(cap.Permitted, value); err == nil && has {
			kept = append(kept, value)
		}
	}
	err := errors.Join(set.SetFlag(cap.Permitted, true, kept...), set.SetFlag(cap.Effective, true, kept...))
	if os.Geteuid() != 0 {
		err = errors.Join(err, set.SetFlag(cap.Inheritable, true, kept...))
	}
	if err == nil {
		err = errors.Join(cap.ResetAmbient(), set.SetProc())
	}
	if err == nil && os.Geteuid() != 0 {
		err = cap.SetAmbient(true, kept...)
	}
	if _, off := cap.Prctl(unix.PR_SET_DUMPABLE, 0); off != nil {
		err = errors.Join(err, off)
	}
	if err != nil {
		return fmt.Errorf("dropping privileges: %w", err)
	}
	return nil
}

// serve answers requests until the daemon has ended, and then waits for the programs that still run.
func serve() error {
	survive()
	os.Clearenv()
	conn, err := helper.Daemon()
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil { // see sweep
		return os.NewSyscallError("prctl", err)
	}
	r := &runner{out: json.NewEncoder(conn), free: make(chan struct{}, MaxRunning), pace: newPace(time.Now()),
		aboves: make(map[int]bool)}
	in := bufio.NewScanner(conn)
	in.Buffer(nil, mostRequest)
	for in.Scan() {
		var q request
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			return err
		}
		r.do(&q)
	}
	r.running.Wait()
	if err := in.Err(); !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	return nil // the daemon has ended before it had read everything
}

// runner is the process that starts programs.
type runner struct {
	root    *os.Root // the directory of server.toml
	dir     string
	is, was *config.Config
	free    chan struct{} // has an entry for each program that runs
	pace    pace
	running sync.WaitGroup
	mu      sync.Mutex // guards the order of answers
	out     *json.Encoder

	starting sync.Mutex   // guards aboves, and is held while one is started
	aboves   map[int]bool // the processes above programs
}

func (r *runner) send(a answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.out.Encode(a) // the daemon may have ended
}

func (r *runner) do(q *request) {
	var err error
	switch {
	case q.Job != nil:
		r.begin(q.Number, q.Job)
		return
	case q.Settings != nil:
		err = r.adopt(q.Settings)
	case q.Read:
		err = r.read()
	case q.Back && r.was != nil:
		r.is, r.was = r.was, nil
	default:
		err = errors.New("unknown request")
	}
	a := answer{Number: q.Number}
	if err != nil {
		a.Trouble = err.Error()
	} else {
		a.Unfit, a.Text = unfit(r.is), r.is.Text()
	}
	r.send(a)
}

// adopt takes the first settings, from a daemon that has not read a packet yet. There is one such request.
func (r *runner) adopt(s *settings) error {
	if r.is != nil {
		return errors.New("the settings are known")
	}
	path := filepath.Join(s.Dir, config.FileName)
	if err := CheckSettings(s.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c, err := config.Parse(s.Dir, path, s.Text)
	if err != nil {
		return err
	}
	if r.root, err = os.OpenRoot(s.Dir); err != nil {
		return err
	}
	r.dir, r.is = s.Dir, c
	return CheckRights(c)
}

// read reads server.toml, which only root may be able to change: the daemon could have written it.
func (r *runner) read() error {
	if err := CheckSettings(r.dir); err != nil {
		return err
	}
	c, err := config.LoadIn(r.root, r.dir)
	if err == nil {
		err = CheckRights(c)
	}
	if err != nil {
		return err
	}
	r.is, r.was = c, r.is
	return nil
}

// unfit returns the services whose programs cannot be started, and why.
func unfit(c *config.Config) map[string]string {
	found := make(map[string]string)
	for _, s := range c.Services {
		if !s.Action.Any() {
			continue
		}
		if err := Check(s.Action); err != nil {
			found[s.Name] = err.Error()
		}
	}
	return found
}

// begin starts a job's program, once there is room and it is not too soon: the daemon waits meanwhile.
func (r *runner) begin(number uint64, j *Job) {
	fail := func(err error) {
		r.send(answer{Number: number, Event: &Event{What: Failed, Text: err.Error()}})
	}
	t, err := r.taskOf(j)
	if err != nil {
		fail(err)
		return
	}
	r.free <- struct{}{}
	time.Sleep(r.pace.wait(time.Now()))
	r.running.Go(func() {
		over := r.above(t, func(e Event) { r.send(answer{Number: number, Event: &e}) })
		<-r.free // before the daemon knows
		r.send(answer{Number: number, Event: &over})
	})
}

// taskOf returns the program of a job, as the settings have it, and its environment. The files are looked at again:
// they may have changed since the settings were read.
func (r *runner) taskOf(j *Job) (task, error) {
	if r.is == nil {
		return task{}, errors.New("there are no settings yet")
	}
	s, ok := r.is.Service(j.Service)
	if !ok || len(j.Hook.of(s.Action)) == 0 {
		return task{}, fmt.Errorf("service %q has no program for %q", j.Service, j.Hook)
	}
	if err := j.check(); err != nil {
		return task{}, err
	}
	command := j.Hook.of(s.Action)
	if err := checkProgram(command[0]); err != nil {
		return task{}, err
	}
	who, err := lookUp(s.Action.User)
	if err != nil {
		return task{}, err
	}
	return task{
		Command: command, UID: who.uid, GID: who.gid, Groups: who.groups, Timeout: s.Action.Timeout, Grace: Grace,
		Environment: append(j.environment(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"HOME="+who.home, "USER="+who.name, "LOGNAME="+who.name),
	}, nil
}

// pace spaces starts: Burst of them at once, and then PerMinute.
type pace struct{ next time.Time }

func newPace(now time.Time) pace { return pace{now.Add(-Burst * time.Minute / PerMinute)} }

// wait returns how long to wait before the next start.
func (p *pace) wait(now time.Time) time.Duration {
	earliest := now.Add(-Burst * time.Minute / PerMinute)
	if p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(time.Minute / PerMinute)
	return max(0, p.next.Sub(now))
}
