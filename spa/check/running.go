package check

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sallyport/keys"
	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// lostAdvice returns the command that shows why lines of the audit log are lost.
func lostAdvice(c *config.Config) string {
	if c.Audit.Journal {
		return "systemctl status systemd-journald.socket systemd-journald\n# shows whether the journal takes messages"
	}
	return "df -h " + quote.Shell(filepath.Dir(c.Audit.File)) + "\n# shows whether there is space"
}

// checkRunning reports problems of the running server.
func checkRunning(c *config.Config, s *control.Status) []Finding {
	var found []Finding
	if s.Audit.Moved != "" {
		found = append(found, Finding{
			Severity: Problem, Subject: s.Audit.File,
			Text:   s.Audit.Moved,
			Advice: mendAudit(c, s),
		})
	}
	if s.Audit.Lost > 0 {
		found = append(found, Finding{
			Severity: Problem, Subject: s.Audit.File,
			Text: fmt.Sprintf("lines lost since the server was started: %d, the last at %s: %s", s.Audit.Lost,
				s.Audit.LostAt.Local().Format(time.DateTime), s.Audit.LostWhy),
			Advice: lostAdvice(c) + "; a restart resets the count",
		})
	}
	if s.Firewall.Unkept {
		found = append(found, Finding{
			Severity: Warning, Subject: "guard",
			Text: "the process that keeps it, spa-keeper, has ended: if the server is killed too, another tool can flush " +
				"it, and the ports are open",
			Advice: "systemctl restart spa-server",
		})
	}
	found = append(found, checkPrograms(s.Actions)...)
	found = append(found, checkRefused(c, s.Recovery)...)
	found = append(found, checkMember(s.Fleet)...)
	return append(found, notTaken(c, s)...)
}

// mendAudit returns the command after which the audit log can continue. The server has one too, but an attacker may
// control it, and must not choose what root pastes.
func mendAudit(c *config.Config, s *control.Status) string {
	uid, gid, err := sandbox.Becomes(setup.SystemUser)
	if err != nil || c.Audit.File == "" || s.Audit.Mend == setup.Restart {
		return setup.Restart
	}
	return setup.MendAudit(c.Audit.File, setup.ServerName(), uid, gid)
}

// notTaken reports clients that the server ignores although their files are correct now.
func notTaken(c *config.Config, s *control.Status) []Finding {
	if len(s.LeftOut) == 0 {
		return nil
	}
	registry, _ := setup.LoadClients(filepath.Join(c.Dir, config.ClientsDir)) // mistakes are reported elsewhere
	var found []Finding
	for _, out := range s.LeftOut {
		if _, ok := registry.Client(out.Client); ok {
			found = append(found, Finding{
				Severity: Problem, Subject: filepath.Join(config.ClientsDir, out.Client+keys.Suffix),
				Text:   "the server has not loaded it, so its client cannot knock: " + out.Why,
				Advice: "systemctl reload spa-server",
			})
		}
	}
	return found
}

// checkOpenable reports files that the server will be unable to open, both as its own user and as root, which under
// systemd lacks the right to open other users' files.
func checkOpenable(c *config.Config, h *host) []Finding {
	if h.uid != 0 {
		return nil
	}
	var found []Finding
	if len(checkOwner(c, h)) == 0 { // that reports the journal
		found = openable(filepath.Join(c.State, config.JournalFile), h)
	}
	files := []string{setup.LockFile, setup.LedgerFile, "keeper", control.SocketName, config.RecoveryFile}
	if c.RunsPrograms() {
		files = append(files, config.ActionsFile)
	}
	if c.Fleet.On() {
		files = append(files, config.BundlesFile, config.BundlesFile2)
	}
	for _, file := range files {
		found = append(found, openable(filepath.Join(c.State, file), h)...)
	}
	if c.Fleet.On() {
		found = append(found, openable(c.Fleet.Taken, h)...)
	}
	for _, place := range setup.Distinct(c.State, c.Dir) {
		if err := setup.CheckSettings(place, c.Dir); !errors.Is(err, setup.ErrNotTrusted) {
			continue
		}
		path := filepath.Join(place, setup.SettingsFile)
		found = append(found, Finding{
			Severity: Warning, Subject: path,
			Text: setup.ErrNotTrusted.Error() + ", so it is ignored: if " + config.FileName +
				" has a mistake at boot, nothing is guarded",
			Advice: "spa-server reload\n# replaces it",
		})
	}
	if c.Audit.File != "" {
		found = append(found, openable(c.Audit.File, h)...)
	}
	root, err := os.OpenRoot(c.Dir)
	if err != nil {
		return found // reported elsewhere
	}
	defer root.Close()
	for _, read := range []struct {
		path string
		do   func() error
	}{
		{filepath.Join(c.Dir, config.FileName), func() error { _, err := config.LoadIn(root, c.Dir); return err }},
		{filepath.Join(c.Dir, config.GateFile), func() error {
			_, err := keys.ReadGateIn(root, c.Dir,
				config.GateFile)
			return err
		}},
	} {
		err := sandbox.As(setup.SystemUser, read.do)
		if errors.Is(err, fs.ErrPermission) {
			found = append(found, Finding{
				Severity: Problem, Subject: read.path,
				Text:   "a reload is refused: " + setup.Legible(read.path, err).Error(),
				Advice: "spa-server reload\n# after the command above",
			})
		}
	}
	return found
}

// openable reports a file that both root without capabilities and the server's user are unable to open or make.
func openable(path string, h *host) []Finding {
	uid, gid, ok := h.server()
	at := filepath.Dir(path)
	dir, missing := os.Stat(at)
	if !ok || missing != nil || setup.HasACL(at) { // a missing directory is reported elsewhere
		return nil
	}
	file, err := os.Lstat(path)
	if err == nil && setup.HasACL(path) {
		return nil
	}
	for _, who := range [][2]int{{0, 0}, {uid, gid}} {
		if err == nil && file.Mode()&fs.ModeSocket == 0 { // a socket is created again
			if setup.Permits(dir, who[0], who[1], setup.MaySearch) && setup.Permits(file, who[0], who[1],
				setup.MayRead|setup.MayWrite) {
				return nil
			}
		} else if setup.Permits(dir, who[0], who[1], setup.MaySearch|setup.MayWrite) {
			return nil
		}
	}
	return []Finding{{
		Severity: Problem, Subject: path,
		Text: fmt.Sprintf("root (without CAP_DAC_OVERRIDE) and the user %s cannot open it, so the server does not start",
			setup.ServerName()),
		Advice: setup.MendFile(path),
	}}
}
