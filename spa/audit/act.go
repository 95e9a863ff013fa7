package audit

import (
	"log/slog"
	"net/netip"
	"time"
)

// Act is what an administrator did to the gateway with a command, or what changed because of another gateway of its
// site: "install" and "end".
type Act struct {
	Time    time.Time
	Act     string // "new", "rotate", "revoke", "rotate-gate", "reload", "bundle", "teardown", "install", "end"
	Program string // "spa-keygen" or "spa-server"
	Client  string // empty: none
	Key     string // the id of the client's new or revoked key; not secret
	Source  netip.Addr
	By      By
	More    []slog.Attr // further details
}

// By is who did it: the kernel reports UID, and the program claims the rest.
type By struct {
	UID      int
	LoginUID string // the user that logged in before, by /proc/self/loginuid; empty: unknown
	SudoUser string // SUDO_USER; empty: none
}

// levelAct is the level of an act, which is notable but not a fault. The journal shows it as a notice.
const levelAct = slog.LevelInfo + 1

func (a Act) attrs() []slog.Attr {
	attrs := []slog.Attr{slog.String("act", a.Act), slog.String("program", a.Program)}
	for _, text := range []struct{ key, value string }{{"client", a.Client}, {"key", a.Key}} {
		if text.value != "" {
			attrs = append(attrs, slog.String(text.key, text.value))
		}
	}
	if a.Source.IsValid() {
		attrs = append(attrs, slog.String("source", a.Source.String()))
	}
	attrs = append(attrs, a.More...)
	attrs = append(attrs, slog.Int("uid", a.By.UID))
	for _, text := range []struct{ key, value string }{{"login_uid", a.By.LoginUID}, {"sudo_user", a.By.SudoUser}} {
		if text.value != "" {
			attrs = append(attrs, slog.String(text.key, text.value))
		}
	}
	return attrs
}

// RecordAct writes the act's line. The error is that of a lost line.
func (l *Log) RecordAct(a Act) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.write(a.Time, levelAct, a.attrs())
}

// Append writes an act's line to the log at path while no server runs. The server gives a new log of root's to its own
// user when it starts.
func Append(path, gateway, version string, a Act) error {
	l, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return l.last(gateway, version, a)
}

// last writes an act's line and closes the log.
func (l *Log) last(gateway, version string, a Act) error {
	l.SetOrigin(gateway, version)
	_ = l.RecordAct(a) // a lost line is counted
	err := l.Close()
	if lost := l.Lost(); lost.Lines > 0 {
		return lost.Err
	}
	return err
}
