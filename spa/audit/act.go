package audit

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Act is what an administrator did to the gateway with a command.
type Act struct {
	Time    time.Time
	Act     string // "new", "rotate", "revoke", "rotate-gate", "reload", "teardown"
	Program string // "spa-keygen" or "spa-server"
	Client  string // empty: none
	Key     string // the id of the client's new or revoked key; not secret
	Source  netip.Addr
	By      By
	More    []slog.Attr // what else is known of it
}

// By is who did it: the user is the kernel's word, the rest is claimed.
type By struct {
	UID      int
	LoginUID string // the user that logged in before, by /proc/self/loginuid; empty: unknown
	SudoUser string // SUDO_USER; empty: none
}

// levelAct is the level of an act: notable, and no fault. The journal shows it as a notice.
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

// RecordAct writes the act's line. Like Record it never fails.
func (l *Log) RecordAct(a Act) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write(a.Time, levelAct, a.attrs())
}

// Append writes an act's line to the log at path, where no server runs. A new file belongs to the owner of its
// directory, who may be the user that the server becomes.
func Append(path, gateway, version string, a Act) error {
	if err := makeFor(path); err != nil {
		return err
	}
	l, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return l.last(gateway, version, a)
}

// last writes an act's line and closes the log.
func (l *Log) last(gateway, version string, a Act) error {
	l.SetOrigin(gateway, version)
	l.RecordAct(a)
	err := l.Close()
	if lost := l.Lost(); lost.Lines > 0 {
		return lost.Err
	}
	return err
}

// makeFor makes the file, if there is none, for the owner of its directory.
func makeFor(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|noFollow, 0o640)
	if os.IsExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	return file.Chown(ownerOf(dir), -1)
}
