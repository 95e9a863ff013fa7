// Package action runs the programs that server.toml names for the begin and the end of a grant.
//
// The daemon cannot start programs. Before it drops its privileges it starts a runner, which can do nothing else: it
// has its own copy of the settings and, from the daemon, takes the name of a service, a hook, a client's name, an
// address, a time and a number, checks each of them, and starts the program that the settings have for that service
// and hook. Arguments are fixed in the settings; there is no shell. A reload makes the runner read server.toml again:
// it does not believe the daemon. So whoever takes the daemon over can at most start the configured programs, with
// such values, a few at a time and a limited number a minute.
//
//	daemon (user spa)  --socket-->  spa-runner  --pipes-->  spa-action, one for each program  -->  program
//
// Each program has a process above it, spa-action, which inherits everything that the program leaves behind, even what
// forks away into another session. The action lasts until all of it has ended; when its time is over, all of it is
// killed. It goes on when the server ends, and ends on time. If an action itself is killed, the runner kills what it
// was above.
//
// A program gets a session of its own, no input, no capability, no set-user-id programs (unless it is root's), and this
// environment and no more: PATH, HOME, USER, LOGNAME, and
//
//	SPA_CLIENT   the client's name
//	SPA_ADDRESS  the address that the grant is for
//	SPA_SERVICE  the service
//	SPA_UNTIL    when the grant ends, or has ended, in RFC 3339
//	SPA_GRANT    16 hex digits, the same at the begin and the end of one grant and of no other
//
// Runner is the daemon's end of the socket. Book is what the daemon owes: it records which grants have begun, so that
// each begins once and its end is not forgotten, whatever is killed in between.
package action

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/config"
)

// Hook is the occasion of a program.
type Hook string

// The hooks, as server.toml names them.
const (
	Begin Hook = "run"
	End   Hook = "run_after"
)

// of returns the hook's program and arguments; none: nothing runs.
func (h Hook) of(a config.Action) []string {
	switch h {
	case Begin:
		return a.Run
	case End:
		return a.After
	}
	return nil
}

// Limits that the runner enforces, whatever the daemon asks for.
const (
	// MaxRunning is how many programs run at a time.
	MaxRunning = 8
	// Burst and PerMinute are how many may be started at once, and how many a minute afterwards. More wait.
	Burst     = 60
	PerMinute = 300
	// MaxOutput and MaxLines are how much of a program's output is passed on. The rest is read, counted and discarded.
	MaxOutput = 4096
	MaxLines  = 64
	// Grace is the time between SIGTERM and SIGKILL.
	Grace = 5 * time.Second
)

// Job is one program to start, for one grant.
type Job struct {
	Grant   uint64     `json:"grant"`
	Hook    Hook       `json:"hook"`
	Service string     `json:"service"`
	Client  string     `json:"client"`
	Address netip.Addr `json:"address"`
	Until   time.Time  `json:"until"`
}

// check returns an error for a value that must not get into a program's environment.
func (j *Job) check() error {
	if err := service.ValidName(j.Client); err != nil {
		return fmt.Errorf("the client: %w", err)
	}
	if !j.Address.IsValid() || j.Address.Is4In6() || j.Address.Zone() != "" && !validZone(j.Address.Zone()) {
		return errors.New("the address is not one")
	}
	if y := j.Until.UTC().Year(); y < 1970 || y > 9999 {
		return errors.New("the time is out of range")
	}
	return nil
}

// validZone reports whether a zone is the index of an interface.
func validZone(zone string) bool {
	for _, b := range []byte(zone) {
		if b < '0' || b > '9' {
			return false
		}
	}
	return len(zone) <= 10
}

// environment returns the values that the program of a checked job gets.
func (j *Job) environment() []string {
	return []string{
		"SPA_CLIENT=" + j.Client,
		"SPA_ADDRESS=" + j.Address.String(),
		"SPA_SERVICE=" + j.Service,
		"SPA_UNTIL=" + j.Until.UTC().Format(time.RFC3339),
		fmt.Sprintf("SPA_GRANT=%016x", j.Grant),
	}
}

// Results of a program.
const (
	Started = "started"
	Failed  = "failed"    // it could not be started
	Ended   = "ended"     // it ended by itself, with the Exit status
	Killed  = "killed"    // a signal ended it, and not ours
	TooLong = "timed out" // it and all that it had started were killed
	Printed = "printed"   // a line of its output
	Lost    = "lost"      // the runner has ended, so nothing more is known
)

// Event is what became of a program.
type Event struct {
	What string `json:"what"`
	Exit int    `json:"exit,omitzero"` // its exit status; of a killed one the number of the signal
	Text string `json:"text,omitzero"` // why it failed, or what it printed
	// Dropped is how many bytes of its output were not passed on.
	Dropped int64 `json:"dropped,omitzero"`
}

// over reports whether nothing follows the event.
func (e Event) over() bool { return e.What != Started && e.What != Printed }
