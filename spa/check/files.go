package check

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"sallyport/keys"
	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// checkAccess checks who can read and change the gateway's files. Files with keys are checked where they are read.
func checkAccess(c *config.Config, h *host) []Finding {
	var found []Finding
	for _, dir := range setup.Distinct(c.Dir, filepath.Join(c.Dir, config.ClientsDir), c.State) {
		found = append(found, writable(dir, "users who can write there can replace its files")...)
	}
	found = append(found, writable(filepath.Join(c.Dir, config.FileName),
		"users who can write it decide what is guarded")...)
	for _, path := range []string{
		filepath.Join(c.State, config.JournalFile), filepath.Join(c.State, setup.LedgerFile),
		filepath.Join(c.State, config.ActionsFile), filepath.Join(c.State, config.RecoveryFile),
		filepath.Join(c.State, control.SocketName), c.Audit.File, // none with the journal
	} {
		found = append(found, private(path)...)
	}
	found = append(found, checkOwners(c, h)...)
	return append(found, checkOwner(c, h)...)
}

const (
	byOthers      = 0o007
	writeByOthers = 0o002
)

// writable reports a path that users other than its owner and group can write.
func writable(path, why string) []Finding {
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm()&writeByOthers == 0 {
		return nil // a missing file is reported where it is read
	}
	return []Finding{{
		Severity: Warning, Subject: path,
		Text:   fmt.Sprintf("its mode is %04o: %s", fi.Mode().Perm(), why),
		Advice: "chmod o-w " + quote.Shell(path),
	}}
}

// private reports a file that others can read: it shows who knocked, when, and from where.
func private(path string) []Finding {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode()&fs.ModeSymlink != 0 || fi.Mode().Perm()&byOthers == 0 { // chmod would follow a link
		return nil
	}
	return []Finding{{
		Severity: Warning, Subject: path,
		Text: fmt.Sprintf("its mode is %04o: every user of this host can read which clients knocked, and when",
			fi.Mode().Perm()),
		Advice: setup.HideFile(path),
	}}
}

// checkOwner reports a journal that belongs to another user than the server's.
func checkOwner(c *config.Config, h *host) []Finding {
	path := filepath.Join(c.State, config.JournalFile)
	journal, err := ownerOf(path)
	dir, err2 := ownerOf(c.State)
	if err != nil || err2 != nil || journal == 0 || journal == dir {
		return nil
	}
	if uid, _, ok := h.server(); ok && uid == journal {
		return nil
	}
	return []Finding{{
		Severity: Problem, Subject: path,
		Text: fmt.Sprintf("it belongs to user %d, not to root or the owner of its directory: under systemd the server "+
			"cannot open it and does not start, and that user could delete its record of spent packets", journal),
		Advice: "chown -h --reference=" + quote.Shell(c.State) + " " + quote.Shell(path),
	}}
}

func ownerOf(path string) (int, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	return int(st.Uid), nil
}

// checkCopies looks for copies of secrets that editors and people leave behind.
func checkCopies(c *config.Config) []Finding {
	var found []Finding
	for _, dir := range setup.Distinct(c.Dir, filepath.Join(c.Dir, config.ClientsDir)) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // an unreadable directory is reported with the clients
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if what := leftover(path, e); what != "" {
				found = append(found, copied(path, what, e))
			}
		}
	}
	return found
}

// leftover describes a file that should not be there; empty if it should, or is not ours.
func leftover(path string, e fs.DirEntry) string {
	if !e.Type().IsRegular() {
		return ""
	}
	if isToken(path) {
		return "a token: anyone who has it can knock"
	}
	name := strings.TrimPrefix(strings.TrimPrefix(e.Name(), "."), "#")
	for _, secret := range []string{config.GateFile, config.FleetKeyFile, keys.Suffix} {
		before, rest, ok := strings.Cut(name, secret)
		if ok && rest != "" && !strings.HasPrefix(before, "server") {
			return "a copy of a file with keys"
		}
	}
	return ""
}

// isToken reports whether a file is an enrolment token.
func isToken(path string) bool {
	const most = 4096
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return false
	}
	_, err = keys.ParseToken(string(data))
	return err == nil
}

func copied(path, what string, e fs.DirEntry) Finding {
	f := Finding{
		Severity: Notice, Subject: path,
		Text:   what,
		Advice: "shred -u " + quote.Shell(path) + "\n# once it is not needed any more",
	}
	if fi, err := e.Info(); err == nil && fi.Mode().Perm()&byOthers != 0 {
		f.Severity, f.Text = Warning,
			what+fmt.Sprintf(", and its mode is %04o: any user of this host may have read it", fi.Mode().Perm())
		f.Advice = "shred -u " + quote.Shell(path) + "\n# and rotate the key that is in it: spa-keygen rotate NAME"
	}
	return f
}

// checkMedium checks the file system of the replay journal.
func checkMedium(c *config.Config, h *host) []Finding {
	switch h.medium(c.State) {
	case inMemory:
		return []Finding{{
			Severity: Notice, Subject: "state",
			Text:   c.State + " is in memory: after a reboot there is no journal, and knocks are refused for a window",
			Advice: "# set state to a directory on a disk, such as /var/lib/spa",
		}}
	case onNetwork:
		return []Finding{{
			Severity: Notice, Subject: "state",
			Text: c.State + " is on a network file system: while that is slow or unreachable, no client gets " +
				"in, and locks may not work",
			Advice: "# set state to a directory on a disk of this host, such as /var/lib/spa",
		}}
	}
	return nil
}
