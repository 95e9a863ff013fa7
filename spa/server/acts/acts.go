// Package acts records what administrators do in the audit log: through the gateway's server, which has the log open,
// or directly if no server runs.
package acts

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sallyport/keys/quote"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

// within is how long the server may take to write a line.
const within = 5 * time.Second

// Record puts an act into the audit log of the gateway in dir. The act is done: an error is only reported.
func Record(parent context.Context, dir, version string, a control.Act) error {
	state, err := config.StateDir(dir)
	if err != nil {
		state = dir
	}
	return record(parent, state, version, a, func() (*config.Config, error) { return config.Load(dir) })
}

// RecordAs is Record for an act that changed server.toml: the line goes to the log that the settings named before. The
// file that the new ones name may be a mistake.
func RecordAs(parent context.Context, was *config.Config, version string, a control.Act) error {
	return record(parent, was.State, version, a, func() (*config.Config, error) { return was, nil })
}

func record(parent context.Context, state, version string, a control.Act,
	settings func() (*config.Config, error)) error {
	by := By()
	c, err := settings()
	// A server whose guard was torn down is about to stop: it may write the line, and not live to say so.
	if a.Act != "teardown" || err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), within)
		defer cancel()
		if tell(ctx, state, control.Request{Command: control.CommandRecord, Act: &a, By: by}) == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("no server runs that could write it, and where the audit log is cannot be read: %w", err)
	}
	act := Of(a, by, os.Getuid(), time.Now())
	if c.Audit.Journal {
		return audit.AppendJournal(audit.JournalSocket, c.Name, version, act)
	}
	return withRightsFor(c.Audit.File, func() error { return audit.Append(c.Audit.File, c.Name, version, act) })
}

// Of returns an act as the audit log has it.
func Of(a control.Act, by *control.By, uid int, now time.Time) audit.Act {
	act := audit.Act{Time: now, Act: a.Act, Program: a.Program, Client: a.Client, Key: a.Key, By: Who(by, uid)}
	if len(a.Services) > 0 {
		act.More = append(act.More, slog.Any("services", a.Services))
	}
	if len(a.Settings) > 0 {
		act.More = append(act.More, slog.Any("settings", a.Settings))
	}
	if !a.Previous.IsZero() {
		act.More = append(act.More, slog.Time("previous_until", a.Previous))
	}
	return act
}

// Who returns the user behind an act: by the kernel, and as the client claims, shortened and printable.
func Who(by *control.By, uid int) audit.By {
	who := audit.By{UID: uid}
	if by != nil {
		who.LoginUID, who.SudoUser = short(by.LoginUID), short(by.SudoUser)
	}
	return who
}

func short(text string) string {
	const most = 64
	return quote.Printable(strings.ToValidUTF8(text[:min(len(text), most)], ""))
}

// noLogin is the loginuid of a process without a login.
const noLogin = "4294967295"

// By returns what this process knows of the user that runs it.
func By() *control.By {
	by := &control.By{SudoUser: os.Getenv("SUDO_USER")}
	if login, err := os.ReadFile("/proc/self/loginuid"); err == nil && string(login) != noLogin {
		by.LoginUID = strings.TrimSpace(string(login))
	}
	return by
}

// rootAlone reports whether root alone decides what is at a path below which a file is written: none of the directories
// can be changed by others. Its links are followed.
func rootAlone(dir string) bool {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	for _, path := range []string{filepath.Clean(dir), real} {
		for at := path; ; at = filepath.Dir(at) {
			if info, err := os.Lstat(at); err != nil || !onlyRoot(info) {
				return false
			}
			if at == filepath.Dir(at) {
				break
			}
		}
	}
	return true
}
