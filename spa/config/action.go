package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sallyport/keys/service"
)

// Action lists the programs that run for a service, each with fixed arguments and without a shell.
type Action struct {
	Run     []string      // when a grant begins; none: nothing runs
	After   []string      // when a grant has ended
	User    string        // who runs them; "root" only if the file says so
	Timeout time.Duration // after this, a program and all that it started are killed
}

// Any reports whether there is a program to run.
func (a Action) Any() bool { return len(a.Run) > 0 || len(a.After) > 0 }

// RunsPrograms reports whether a service has a program.
func (c *Config) RunsPrograms() bool {
	return slices.ContainsFunc(c.Services, func(s Service) bool { return s.Action.Any() })
}

const defaultTimeout = time.Minute

// Limits of an action.
const (
	maxTimeout   = time.Hour
	maxArguments = 64
	maxCommand   = 4096 // bytes
)

func (l *loader) action(key string, raw rawService) Action {
	a := Action{Run: l.command(key+".run", raw.Run), After: l.command(key+".run_after", raw.RunAfter)}
	if !l.doc.Has(key+".run") && !l.doc.Has(key+".run_after") {
		for _, name := range []string{"user", "timeout"} {
			if l.doc.Has(key + "." + name) {
				l.must(key+"."+name, errors.New("has an effect only with run or run_after"))
			}
		}
		return Action{}
	}
	if raw.User == nil {
		l.must(key+".user", errors.New(`missing: write who runs the program, such as user = "nobody"; it is root only if `+
			"you write that"))
	} else {
		a.User = *raw.User
		l.must(key+".user", validUser(a.User))
	}
	a.Timeout = defaultTimeout
	if raw.Timeout != nil {
		a.Timeout = l.duration(key+".timeout", *raw.Timeout)
	}
	if a.Timeout > maxTimeout {
		l.must(key+".timeout", fmt.Errorf("must be at most %s", service.FormatDuration(maxTimeout)))
	}
	return a
}

// command checks the form of a command. Whether it can run is for package action to find out, on the gateway.
func (l *loader) command(key string, words []string) []string {
	if !l.doc.Has(key) {
		return nil
	}
	size := 0
	for _, word := range words {
		size += len(word)
	}
	switch {
	case len(words) == 0 || !filepath.IsAbs(words[0]) || filepath.Clean(words[0]) != words[0]:
		l.must(key, errors.New(`should be the absolute path of a program and its arguments, as a list: `+
			`["/usr/bin/systemctl", "restart", "apache2"]`))
	case len(words) > maxArguments || size > maxCommand:
		l.must(key, fmt.Errorf("should be at most %d words of %d bytes together: put more into a script", maxArguments,
			maxCommand))
	case slices.ContainsFunc(words, func(word string) bool { return strings.ContainsRune(word, 0) }):
		l.must(key, errors.New("has a zero byte"))
	}
	return words
}

// validUser checks the form of a user's name (useradd(8)).
func validUser(name string) error {
	odd := func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		return !letter && (r < '0' || r > '9') && !strings.ContainsRune("_-.", r)
	}
	if name == "" || len(name) > 32 || name[0] == '-' || strings.ContainsFunc(name, odd) {
		return errors.New("should be the name of a user")
	}
	return nil
}

// withoutPorts refuses settings that need ports.
func (l *loader) withoutPorts(key string) {
	for _, name := range []string{"addresses", "on_expiry", "once", "forward"} {
		if l.doc.Has(key + "." + name) {
			l.must(key+"."+name, errors.New("has no effect on a service without ports"))
		}
	}
}

func (a Action) filled() Action {
	a.Run, a.After = none(a.Run), none(a.After)
	if a.Any() {
		a.Timeout = or(a.Timeout, defaultTimeout)
	}
	return a
}

func (a Action) write(b *strings.Builder) {
	if !a.Any() {
		example(b, `run = ["/usr/bin/systemctl", "restart", "apache2"]`, "when a grant begins; with ports or instead")
		example(b, `run_after = ["/usr/local/bin/after"]`, "when it has ended")
		example(b, `user = "deploy"`, "who runs them")
		example(b, `timeout = "1m"`, "then they and all that they started are killed")
		return
	}
	if len(a.Run) > 0 {
		setting(b, "run", list(a.Run), "when a grant begins")
	}
	if len(a.After) > 0 {
		setting(b, "run_after", list(a.After), "when it has ended")
	}
	setting(b, "user", quote(a.User), "who runs them")
	setting(b, "timeout", quote(service.FormatDuration(a.Timeout)), "then they and all that they started are killed")
}
