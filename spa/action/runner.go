package action

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"sallyport/spa/config"
	"sallyport/spa/helper"
)

// ErrGone is wrapped by all errors of a runner that has ended.
var ErrGone = errors.New("the process that runs programs has ended; restart spa-server")

// patience is how long the runner may take for anything but a program.
const patience = 30 * time.Second

// Runner is the daemon's end of the process that starts programs.
type Runner struct {
	*helper.Process
	events chan numbered // of jobs, in the order in which they were reported
	left   chan struct{} // closed when nobody reads them any more

	mu     sync.Mutex // guards the order of requests, and the fields below
	out    *json.Encoder
	number uint64
	waits  map[uint64]chan answer
	unfit  map[string]string
	gone   error
}

// leave closes the socket. The runner ends when its programs have.
func (r *Runner) leave() error {
	close(r.left)
	return r.Conn.Close()
}

// numbered is an event of the job with this number.
type numbered struct {
	number uint64
	event  *Event
}

// Start starts the runner for these settings. Call it before privileges are dropped and before a packet is read.
func Start(c *config.Config) (*Runner, error) {
	if err := CheckRights(c); err != nil {
		return nil, err
	}
	r := &Runner{events: make(chan numbered, 4*MaxRunning), left: make(chan struct{}),
		waits: make(map[uint64]chan answer)}
	var err error
	if r.Process, err = helper.Start(runnerName, true, r.fail, runnerArg); err != nil {
		return nil, fmt.Errorf("starting the process that runs programs: %w", err)
	}
	r.out = json.NewEncoder(r.Conn)
	go r.listen()
	if _, err = r.ask(request{Settings: &settings{c.Dir, c.Text()}}); err != nil {
		return nil, errors.Join(err, r.leave())
	}
	return r, nil
}

// listen hands on what the runner reports, until it has ended.
func (r *Runner) listen() {
	in := bufio.NewScanner(r.Conn)
	in.Buffer(nil, mostRequest)
	for in.Scan() {
		var a answer
		if err := json.Unmarshal(in.Bytes(), &a); err != nil {
			break
		}
		if a.Event != nil {
			select {
			case r.events <- numbered{a.Number, a.Event}:
			case <-r.left:
			}
			continue
		}
		r.mu.Lock()
		wait := r.waits[a.Number]
		delete(r.waits, a.Number)
		r.mu.Unlock()
		if wait != nil {
			wait <- a
		}
	}
	r.fail(errors.Join(in.Err(), io.EOF))
	close(r.events)
}

// fail keeps the first reason why there are no more answers.
func (r *Runner) fail(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone == nil {
		r.gone = fmt.Errorf("%w (%v)", ErrGone, why)
	}
	for number, wait := range r.waits {
		close(wait)
		delete(r.waits, number)
	}
}

// Trouble returns why no program of a service can be started now, or nil.
func (r *Runner) Trouble(service string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if why := r.unfit[service]; r.gone == nil && why != "" {
		return errors.New(why)
	}
	return r.gone
}

// Unfit returns the services whose programs cannot be started, and why.
func (r *Runner) Unfit() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unfit
}

// ask sends a request about settings, and waits for its answer.
func (r *Runner) ask(q request) (answer, error) {
	wait := make(chan answer, 1)
	if _, err := r.send(q, wait); err != nil {
		return answer{}, err
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case a, ok := <-wait:
		if !ok {
			return answer{}, r.Trouble("")
		}
		if a.Trouble != "" {
			return answer{}, errors.New(a.Trouble)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.unfit = a.Unfit
		return a, nil
	case <-late.C:
		return answer{}, fmt.Errorf("the process that runs programs has not answered for %v", patience)
	}
}

// send sends a request and returns its number.
func (r *Runner) send(q request, wait chan answer) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone != nil {
		return 0, r.gone
	}
	r.number++
	q.Number = r.number
	if wait != nil {
		r.waits[q.Number] = wait
	}
	if err := r.Conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return q.Number, r.out.Encode(q)
}

// Reload makes the runner read server.toml again, and returns an error unless it has read this text and can start all
// of its programs. Then nothing has changed.
func (r *Runner) Reload(text []byte) error {
	a, err := r.ask(request{Read: true})
	if err != nil {
		return err
	}
	for service, why := range a.Unfit {
		err = errors.Join(err, fmt.Errorf("service.%s.%s", service, why))
	}
	if !bytes.Equal(a.Text, text) {
		err = errors.New(config.FileName + " has changed again")
	}
	if err != nil {
		return errors.Join(err, r.Undo())
	}
	return nil
}

// Undo makes the runner use the settings of before the last Reload.
func (r *Runner) Undo() error {
	_, err := r.ask(request{Back: true})
	return err
}
