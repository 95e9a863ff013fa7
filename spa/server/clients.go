package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// openWatcher starts to watch the client files, while the directory can still be opened.
func (s *Server) openWatcher() error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the client files: %w", err)
	}
	if err := watcher.Add(s.clientsDir()); err != nil {
		return errors.Join(fmt.Errorf("watching the client files: %w", err), watcher.Close())
	}
	s.watcher = watcher
	s.keep(watcher)
	return nil
}

// settles is how long a client file may be bad or missing before its client is shut out: editors and copies write in
// several steps.
const settles = time.Second

// unsettled maps each client with a bad or missing file to the time at which it is shut out.
type unsettled map[string]time.Time

// note records whether a client's file could be read.
func (u unsettled) note(name string, err error, now time.Time) {
	if err == nil {
		delete(u, name)
	} else if _, waits := u[name]; !waits {
		u[name] = now.Add(settles)
	}
}

// next returns the time until the first client is due; false if there is none.
func (u unsettled) next(now time.Time) (time.Duration, bool) {
	if len(u) == 0 {
		return 0, false
	}
	return max(0, slices.MinFunc(slices.Collect(maps.Values(u)), time.Time.Compare).Sub(now)), true
}

// watchClients reads each client file that changes, until ctx ends.
func (s *Server) watchClients(ctx context.Context) error {
	waiting := make(unsettled)
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		if in, any := waiting.next(time.Now()); any {
			due.Reset(in)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-due.C:
			s.settle(ctx, waiting)
		case event, ok := <-s.watcher.Events:
			if !ok {
				return nil
			}
			if err := s.reloadFile(ctx, event, waiting); err != nil {
				return err
			}
		case err, ok := <-s.watcher.Errors:
			if !ok {
				return nil
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				s.reloadAll(ctx, waiting)
				continue
			}
			return fmt.Errorf("watching the client files: %w", err)
		}
	}
}

// reloadFile reads a file that changed, even if only its mode did: that may mend it. If the directory is moved away
// the server ends: it could not see further changes.
func (s *Server) reloadFile(ctx context.Context, event fsnotify.Event, waiting unsettled) error {
	if filepath.Clean(event.Name) == s.clientsDir() {
		if event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) {
			return fmt.Errorf("%s was moved away, so a revoked key would go unnoticed: move it back and start again",
				s.clientsDir())
		}
		return nil
	}
	if name, ok := clientName(event.Name); ok {
		waiting.note(name, s.reloadClient(ctx, name), time.Now())
	}
	return nil
}

// settle shuts out the clients that are due: their files stayed bad or missing.
func (s *Server) settle(ctx context.Context, waiting unsettled) {
	now := time.Now()
	var bad []string
	for name, at := range waiting {
		if now.Before(at) {
			continue
		}
		delete(waiting, name)
		if err := s.reloadClient(ctx, name); errors.Is(err, fs.ErrNotExist) {
			s.shutOut(ctx, name, err)
		} else if err != nil {
			bad = append(bad, name)
		}
	}
	for _, name := range bad { // a renamed file keeps its id, which the old name has only now given up
		if err := s.reloadClient(ctx, name); err != nil {
			s.shutOut(ctx, name, err)
		}
	}
}

// reloadAll reads all client files again after the kernel's queue of changes overflowed.
func (s *Server) reloadAll(ctx context.Context, waiting unsettled) {
	names, err := s.clients.Names()
	if err != nil {
		s.log.Error("could not list all client files again: a changed one may be missed (spa-server reload)", "error", err)
	}
	for _, name := range names {
		waiting.note(name, s.reloadClient(ctx, name), time.Now())
	}
}

// clientName returns the client whose file has this name.
func clientName(file string) (string, bool) {
	name, ok := strings.CutSuffix(filepath.Base(file), ".toml")
	return name, ok && service.ValidName(name) == nil
}

func (s *Server) clientsDir() string { return filepath.Join(s.dir, config.ClientsDir) }

// readable makes sure that client files can still be read: changes to them must take effect.
func (s *Server) readable() error {
	_, err := s.clients.Names()
	if !errors.Is(err, fs.ErrPermission) {
		return nil
	}
	command := fmt.Sprintf("chgrp -R %s %s && chmod 750 %[2]s", s.sandbox.User, s.clientsDir())
	if s.sandbox.UID == sandbox.Unnamed {
		command = setup.MakeUser + " && " + setup.HandOver(setup.SystemUser, s.dir)
	}
	return fmt.Errorf("without privileges, as user %s: %w; hand the directory over with: %s", s.sandbox.User, err, command)
}

// reloadClient applies the change of one client file, and what follows for others with the same id. Grants that a
// client may no longer hold end now. A bad or missing file changes nothing yet.
func (s *Server) reloadClient(ctx context.Context, name string) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.line.Lock()
	defer s.line.Unlock()
	bad := s.clients.Bad()
	s.refreshUses()
	changes, err := s.clients.Reload(name)
	s.apply(ctx, changes, bad)
	s.expectNetworks(ctx, slices.ContainsFunc(changes, func(c keys.Change) bool { return letsInMore(c.After) }))
	return err
}

// apply ends what clients may no longer hold after these changes, and logs what became of them. Bad are those that were
// shut out before. The caller logs that a client is gone.
func (s *Server) apply(ctx context.Context, changes []keys.Change, bad map[string]error) {
	for _, c := range changes {
		if c.After != nil && !c.After.Same(c.Before) {
			what := change(c.Before, c.After)
			if bad[c.After.Name] != nil {
				what = "mended"
			}
			s.log.Info("client "+what, "client", c.After.Name)
		}
		if c.Before == nil {
			continue
		}
		if why := s.clients.Bad()[c.Before.Name]; c.After == nil && why != nil && bad[c.Before.Name] == nil {
			s.log.Error(shutOutFor, "client", c.Before.Name, "error", why)
		}
		s.shut(ctx, c.Before, c.After)
	}
}

// shutOut removes a client because its file is bad or missing, and ends its grants.
func (s *Server) shutOut(ctx context.Context, name string, why error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.line.Lock()
	defer s.line.Unlock()
	bad := s.clients.Bad()
	changes := s.clients.Shut(name, why)
	known := slices.ContainsFunc(changes, func(c keys.Change) bool { return c.Before != nil && c.Before.Name == name })
	switch {
	case !errors.Is(why, fs.ErrNotExist):
		s.log.Error(shutOutFor, "client", name, "error", why)
	case known || bad[name] != nil:
		s.log.Info("client removed", "client", name)
	}
	bad[name] = why // said
	s.apply(ctx, changes, bad)
}

// shutOutFor is the log message for a client file that is ignored, at the start or later.
const shutOutFor = "client file ignored: this client cannot knock until it is fixed"

// leftOut returns the client files that are ignored.
func (s *Server) leftOut() []control.LeftOut {
	list := []control.LeftOut{} // [] in JSON, not null
	for name, why := range s.clients.Bad() {
		list = append(list, control.LeftOut{Client: name, Why: why.Error()})
	}
	slices.SortFunc(list, func(a, b control.LeftOut) int { return cmp.Compare(a.Client, b.Client) })
	return list[:min(len(list), mostSeen)]
}

func change(before, after *keys.Client) string {
	switch {
	case !after.Revoked.IsZero():
		return "revoked"
	case before == nil:
		return "added"
	}
	return "changed"
}

// shut ends the grants that the client may no longer hold, and makes sure that no earlier packet opens them again.
// It returns the grants that ended.
func (s *Server) shut(ctx context.Context, before, after *keys.Client) []firewall.Grant {
	now := s.now()
	s.narrow(before, after)
	rekeyed := map[string]bool{before.Name: keys.Rekeyed(before, after, now)}
	return s.endUnkept(ctx, s.firewall.GrantsOf(before.Name, now), rekeyed, now)
}

// narrow refuses packets on their way that ask for what the client may no longer open. If that includes ports, it
// refuses every request by port: a request names one, a file may name a range. A client whose file was renamed
// continues under the new name.
func (s *Server) narrow(before, after *keys.Client) {
	now := s.now()
	if renamed, ok := s.clients.Lookup(before.ID); after == nil && ok {
		after = &renamed.Client
	}
	s.inherit(before, after)
	taken := keys.Taken(before, after, now)
	s.takeAway(before.Name, taken, []string{everything}, now)
	s.takenElsewhere(before, after, taken, now)
	if after == nil {
		return
	}
	lost := slices.DeleteFunc(slices.Clone(before.Allow), func(service string) bool {
		return slices.Contains(after.Allow, service)
	})
	for i, service := range lost {
		if strings.Contains(service, "/") {
			lost[i] = byPort
		}
	}
	if narrowed(before, after, now) {
		lost = append(lost, everything)
	}
	s.takeAway(before.Name, append(before.IDs(), after.IDs()...), lost, now)
}

// narrowed reports whether the client may do less now for another reason than its list of services.
func narrowed(before, after *keys.Client, now time.Time) bool {
	ended := func(c *keys.Client) bool {
		return !c.Revoked.IsZero() || !c.Expires.IsZero() && !now.Before(c.Expires)
	}
	// A revocation that is taken back may be from a time when no server ran: packets sent before it stay refused.
	return ended(after) && !ended(before) || !before.Revoked.IsZero() && after.Revoked.IsZero() ||
		after.RequireSource && !before.RequireSource ||
		less(before.From, after.From) || lessLetIn(before, after) ||
		slices.ContainsFunc(after.Deny, func(p netip.Prefix) bool { return !slices.Contains(before.Deny, p) })
}

// lessLetIn reports whether the client may let in less than it could.
func lessLetIn(before, after *keys.Client) bool {
	narrower := func(was, is int) bool { return was != 0 && (is == 0 || is > was) }
	return narrower(before.Widest4, after.Widest4) || narrower(before.Widest6, after.Widest6) ||
		slices.ContainsFunc(before.Delegate, func(p netip.Prefix) bool { return !slices.Contains(after.Delegate, p) })
}

// less reports whether a list of sources allows less than it did; an empty one allows all.
func less(before, after []netip.Prefix) bool {
	kept := func(p netip.Prefix) bool { return slices.Contains(after, p) }
	return len(after) > 0 &&
		(len(before) == 0 || slices.ContainsFunc(before, func(p netip.Prefix) bool { return !kept(p) }))
}
