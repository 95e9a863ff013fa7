package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/quote"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// files are the administrator's files, read and valid.
type files struct {
	config  *config.Config
	gates   keys.Gates
	clients *keys.Registry
}

// reload reads all files again and applies them all or none. Live grants stay unless they are no longer allowed. It
// runs beside the line and delays it only for the swap. If it returns both an answer and an error, the files were
// applied and the audit log is not at its path.
func (s *Server) reload(parent context.Context) (*control.Reloaded, error) {
	r, err := s.takeOver(parent)
	log := s.reopenAudit() // even if a file has a mistake: log rotation must not wait for that
	if err != nil {
		return nil, err
	}
	return r, errors.Join(s.reloadBundle(parent, r), log)
}

// reloadBundle takes over the bundle that is offered, and adds what that changes to the answer.
func (s *Server) reloadBundle(ctx context.Context, r *control.Reloaded) error {
	if s.fleet == nil {
		return nil
	}
	more, err := s.takeBundle(ctx, true)
	if err != nil {
		return denied("", "the files are applied, but the bundle of the fleet is refused: "+err.Error())
	}
	if more != nil {
		r.Added, r.Changed = append(r.Added, more.Added...), append(r.Changed, more.Changed...)
		r.Removed, r.Ended = append(r.Removed, more.Removed...), append(r.Ended, more.Ended...)
	}
	return nil
}

func (s *Server) takeOver(parent context.Context) (*control.Reloaded, error) {
	s.reading.Lock() // files that the watcher reads at the same time must not overtake those read here
	defer s.reading.Unlock()
	if err := errors.Join(place.InPlace(s.root, s.dir), s.within()); err != nil {
		return nil, denied("move it back, or: systemctl restart spa-server (grants and sessions continue)",
			err.Error(), "nothing was changed")
	}
	next, problems := s.readFiles()
	if len(problems) > 0 {
		return nil, denied("nothing was changed: fix this and reload again", few(problems)...)
	}
	was, is := s.config, next.config // only a reload changes it
	if restart := NeedRestart(was, is); len(restart) > 0 {
		return nil, denied("change it back, or: "+restartCommand(was, is),
			"a restart is needed for "+strings.Join(restart, ", ")+": nothing was changed")
	}
	undo, err := s.reloadActions(is)
	if err != nil {
		return nil, err
	}
	r := &control.Reloaded{
		Settings: append(changed(liveSettings, was, is), changedServices(was, is)...),
		Added:    []string{}, Changed: []string{}, Removed: []string{}, // JSON has lists, not null
	}
	clients := s.clients.Changes(next.clients)
	for _, c := range clients {
		tell(r, c)
	}
	if err := s.swap(context.WithoutCancel(parent), next, clients, r); err != nil {
		err = errors.Join(err, undo())
		if len(r.Ended) == 0 {
			return nil, denied("", err.Error(), "nothing was changed")
		}
		return nil, denied("once the cause is fixed: systemctl reload spa-server", err.Error(),
			fmt.Sprintf("the old settings stay in force; grants that ended: %d", len(r.Ended)))
	}
	s.log.Info("reloaded", "settings", r.Settings, "added", len(r.Added), "changed", len(r.Changed), "removed",
		len(r.Removed), "ended", len(r.Ended))
	return r, nil
}

// restartCommand returns the command that applies settings which need a restart. Grants and spent packets are in the
// state directory, so they are kept if that is moved along.
func restartCommand(was, is *config.Config) string {
	if was.State == is.State {
		return "systemctl restart spa-server (grants and sessions continue)"
	}
	command := "systemctl stop spa-server"
	if !setup.IsDir(is.State) {
		command = setup.MakeState(is.State) + " && " + command
	}
	var files []string
	for _, name := range []string{config.JournalFile, setup.LedgerFile, setup.SettingsFile, config.ActionsFile,
		config.RecoveryFile, config.BundlesFile, config.BundlesFile2} {
		path := filepath.Join(was.State, name)
		if _, err := os.Lstat(path); name == setup.SettingsFile && (err != nil || was.State == was.Dir) ||
			name != config.JournalFile && name != setup.LedgerFile && err != nil {
			continue // none there, or the copy that stays beside server.toml
		}
		files = append(files, quote.Shell(path))
	}
	return fmt.Sprintf("%s && mv %s %s && systemctl start spa-server (grants and sessions continue; first name %[3]s in "+
		"the unit's ReadWritePaths=, with systemctl edit spa-server)",
		command, strings.Join(files, " "), quote.Shell(is.State+"/"))
}

// within returns an error if server.toml is now a link to a place that the server can no longer read since it dropped
// its privileges.
func (s *Server) within() error {
	path := filepath.Join(s.dir, config.FileName)
	real, err := filepath.EvalSymlinks(path)
	if err != nil || s.sandbox.Landlock == 0 {
		return nil // reading it reports the error
	}
	for _, dir := range s.files.Read {
		if below, err := filepath.EvalSymlinks(dir); err == nil && strings.HasPrefix(real, below+"/") {
			return nil
		}
	}
	return fmt.Errorf("%s links to %s, in a directory that was not part of the configuration when the server started",
		path, real)
}

// reopenAudit continues in a new audit log if the old one was moved. On an error no line is lost: they go to the old
// one.
func (s *Server) reopenAudit() error {
	err := s.audit.Reopen()
	if err == nil {
		return nil
	}
	path := s.audit.Path()
	s.log.Error("the audit log continues in the file that was moved away", "error", err, "do", s.mendAudit(path, err))
	return denied(s.mendAudit(path, err), "the new settings are in force, but the audit log continues in the file that "+
		"was moved away: "+err.Error())
}

// ReopenAudit is the part of a reload that log rotation needs, without the files. An error is logged.
func (s *Server) ReopenAudit() { _ = s.reopenAudit() }

// mendAudit returns the command after which the audit log can continue at its path.
func (s *Server) mendAudit(path string, why error) string {
	if errors.Is(why, audit.ErrDirectory) {
		return setup.Restart
	}
	return setup.MendAudit(path, s.sandbox.User, s.sandbox.UID, s.sandbox.GID)
}

// mostProblems is how many problems are listed: as many as a person reads, and fit into an answer.
const mostProblems = 100

func few(problems []string) []string {
	if extra := len(problems) - mostProblems; extra > 0 {
		return append(slices.Clone(problems[:mostProblems]), fmt.Sprintf("and %d more", extra))
	}
	return problems
}

// readFiles reads all files, and returns all that is wrong with any of them.
func (s *Server) readFiles() (files, []string) {
	var next files
	var problems []string
	note := func(err error) {
		if err != nil {
			problems = append(problems, err.Error())
		}
	}
	var err error
	next.config, err = config.LoadIn(s.root, s.dir)
	note(setup.Legible(filepath.Join(s.dir, config.FileName), err))
	next.gates, err = keys.ReadGateIn(s.root, s.dir, config.GateFile)
	note(err)
	var errs []error
	next.clients, errs = s.clients.Fresh()
	for _, err := range errs {
		note(err)
	}
	return next, problems
}

// swap puts the files into force. On an error the old ones stay in force, and r.Ended lists grants that ended anyway.
func (s *Server) swap(ctx context.Context, next files, clients []keys.Change, r *control.Reloaded) error {
	s.line.Lock()
	defer s.line.Unlock()
	now := s.now()
	rules := s.policy.With(next.config)
	held := s.firewall.Grants(now)
	if err := s.adopt(ctx, next); err != nil {
		ended := lost(held, s.firewall.Grants(now))
		s.feed.Revoked(ended, "a reload that failed ended it", now)
		r.Ended = shown(ended)
		return err
	}
	if gates := spa.GatesOf(next.gates); !slices.EqualFunc(gates, s.ownGates, sameGate) {
		r.Settings = append(r.Settings, config.GateFile)
		s.ownGates = gates
		s.setGates()
	}
	s.identity.Window, s.config, s.policy = next.config.Window, next.config, rules
	if s.shared.member != nil { // it has the window, and what to do alone
		s.joinSite(s.shared.name, s.shared.key)
	}
	s.audit.SetOrigin(next.config.Name, s.named)
	s.refreshUses()
	s.clients.Replace(next.clients)
	lost := make(map[string]bool)
	for _, c := range clients {
		if c.Before != nil {
			s.narrow(c.Before, c.After)
			lost[c.Before.Name] = keys.Rekeyed(c.Before, c.After, now)
		}
	}
	r.Ended = shown(s.endUnkept(ctx, held, lost, now))
	s.expectNetworks(ctx, slices.ContainsFunc(clients, func(c keys.Change) bool { return letsInMore(c.After) }))
	return nil
}

// lost returns the grants that are in before and not in after.
func lost(before, after []firewall.Grant) []firewall.Grant {
	var gone []firewall.Grant
	for _, g := range before {
		same := func(other firewall.Grant) bool {
			return other.Client == g.Client && other.Service == g.Service && other.Peer() == g.Peer()
		}
		if !slices.ContainsFunc(after, same) {
			gone = append(gone, g)
		}
	}
	return gone
}

func sameGate(a, b spa.Gate) bool { return a.Key.Equal(b.Key) && a.Until.Equal(b.Until) }

// adopt applies the files to firewall and journal: both or neither. The firewall comes first, because the journal
// cannot return to another window without a trace. If the guard was put back, grants that the new files would not
// have kept have ended.
func (s *Server) adopt(ctx context.Context, next files) error {
	now := s.now()
	was, is := setup.FirewallConfig(s.config, s.clients, s.now), setup.FirewallConfig(next.config, next.clients, s.now)
	same := sameGuard(was, is)
	if !same {
		if err := s.firewall.Reconfigure(ctx, is, now); err != nil {
			return err
		}
	}
	err := s.journal.Retune(next.config.Window, next.config.Limits.LiveNonces, now)
	if err != nil && !same {
		err = errors.Join(err, s.firewall.Reconfigure(ctx, was, now))
	}
	return err
}

func letsInMore(c *keys.Client) bool { return c != nil && c.LetsInMore() }

// expectNetworks gets the firewall ready for grants for networks if a client may now ask for one. So the first grant
// does not delay those of others.
func (s *Server) expectNetworks(ctx context.Context, some bool) {
	if !some {
		return
	}
	if err := s.firewall.ExpectNetworks(ctx, s.now()); err != nil {
		s.log.Warn("the guard is not ready for grants for networks: the first one takes longer", "error", err)
	}
}

// sameGuard reports whether the guard can stay as it is.
func sameGuard(a, b firewall.Config) bool {
	a.Keep, a.Now, b.Keep, b.Now = nil, nil, nil, nil
	return reflect.DeepEqual(a, b)
}

// endUnkept ends the grants that are no longer allowed and those of clients that lost all their keys, and returns them.
func (s *Server) endUnkept(ctx context.Context, held []firewall.Grant, rekeyed map[string]bool,
	now time.Time) []firewall.Grant {
	var ended []firewall.Grant
	for _, g := range held {
		client, _ := s.clients.Client(g.Client)
		if !rekeyed[g.Client] && s.policy.Keeps(client, g, now) {
			continue
		}
		if client != nil && !s.policy.Allows(client, g, now) {
			s.takeAway(g.Client, client.IDs(), []string{g.Service}, now)
		}
		match := firewall.Match{Client: g.Client, Peer: g.Peer(), Services: []string{g.Service}}
		if _, err := s.firewall.Revoke(ctx, match, now); err != nil {
			s.log.Error("could not end a grant; it ends on time", "client", g.Client, "service", g.Service,
				"until", g.Until, "error", err)
			continue
		}
		s.log.Info("grant ended", "client", g.Client, "service", g.Service, "source", g.Peer().String())
		ended = append(ended, g)
	}
	s.feed.Revoked(ended, "it is no longer allowed", now)
	return ended
}
