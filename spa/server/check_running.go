package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
)

// checkRunning reports what the running server has met with.
func checkRunning(c *config.Config, s *control.Status) []Finding {
	var found []Finding
	if s.Audit.Moved != "" {
		found = append(found, Finding{Problem, s.Audit.File, s.Audit.Moved, s.Audit.Mend})
	}
	if s.Audit.Lost > 0 {
		found = append(found, Finding{Problem, s.Audit.File,
			fmt.Sprintf("lines lost since the server was started: %d, the last at %s: %s", s.Audit.Lost, s.Audit.LostAt.Local().Format(time.DateTime), s.Audit.LostWhy),
			"df -h " + keys.ShellWord(filepath.Dir(s.Audit.File)) + "\n# shows whether there is room; the count begins anew with a restart"})
	}
	if s.Firewall.Unkept {
		found = append(found, Finding{Warning, "guard", "the process that keeps it, spa-keeper, has ended: if the server is killed too another tool can flush it, and the ports are open",
			"systemctl restart spa-server"})
	}
	return append(found, notTaken(c, s)...)
}

// notTaken finds clients that the server has left out, though nothing is wrong with their files any more.
func notTaken(c *config.Config, s *control.Status) []Finding {
	if len(s.LeftOut) == 0 {
		return nil
	}
	registry, _ := LoadClients(filepath.Join(c.Dir, config.ClientsDir)) // what is wrong is said elsewhere
	var found []Finding
	for _, out := range s.LeftOut {
		if _, ok := registry.Client(out.Client); ok {
			found = append(found, Finding{Problem, filepath.Join(config.ClientsDir, out.Client+keys.Suffix),
				"the server has not taken it, so its client cannot knock: " + out.Why, "systemctl reload spa-server"})
		}
	}
	return found
}

// checkOpenable looks whether the server will be able to open its files: as root, whom the unit leaves no right
// to the files of others, or as its user.
func checkOpenable(c *config.Config, h *host) []Finding {
	if h.uid != 0 {
		return nil
	}
	var found []Finding
	if len(checkOwner(c, h)) == 0 { // which says it of the journal
		found = openable(filepath.Join(c.State, config.JournalFile), h)
	}
	for _, file := range []string{lockFile, ledgerFile, "keeper", control.SocketName} {
		found = append(found, openable(filepath.Join(c.State, file), h)...)
	}
	if _, err := lastWriting(c.State, c.Dir); errors.Is(err, errNotTrusted) {
		path := filepath.Join(c.State, lastGoodFile)
		found = append(found, Finding{Warning, path, errNotTrusted.Error() + ", so it is not used: with a mistake in " + config.FileName + " at a boot nothing is guarded",
			"spa-server reload\n# makes a new one"})
	}
	if c.Audit.File != "" {
		found = append(found, openable(c.Audit.File, h)...)
	}
	root, err := os.OpenRoot(c.Dir)
	if err != nil {
		return found // it is said elsewhere
	}
	defer root.Close()
	for _, read := range []struct {
		path string
		do   func() error
	}{
		{filepath.Join(c.Dir, config.FileName), func() error { _, err := config.LoadIn(root, c.Dir); return err }},
		{filepath.Join(c.Dir, config.GateFile), func() error { _, err := keys.ReadGateIn(root, c.Dir, config.GateFile); return err }},
	} {
		err := sandbox.As(SystemUser, read.do)
		if errors.Is(err, fs.ErrPermission) {
			found = append(found, Finding{Problem, read.path, "a reload is refused: " + legible(read.path, err).Error(), "spa-server reload\n# after the command above"})
		}
	}
	return found
}

// openable finds a file that neither root without capabilities nor the server's user may open, or make.
func openable(path string, h *host) []Finding {
	uid, gid, ok := h.server()
	at := filepath.Dir(path)
	dir, missing := os.Stat(at)
	if !ok || missing != nil || hasACL(at) { // that there is no directory is said elsewhere
		return nil
	}
	file, err := os.Lstat(path)
	if err == nil && hasACL(path) {
		return nil
	}
	for _, who := range [][2]int{{0, 0}, {uid, gid}} {
		if err == nil && file.Mode()&fs.ModeSocket == 0 { // which is made anew
			if permits(dir, who[0], who[1], maySearch) && permits(file, who[0], who[1], mayRead|mayWrite) {
				return nil
			}
		} else if permits(dir, who[0], who[1], maySearch|mayWrite) {
			return nil
		}
	}
	return []Finding{{Problem, path, fmt.Sprintf("neither root, without CAP_DAC_OVERRIDE, nor the user %s may open it: the server does not start", serverName()), mendFile(path)}}
}
