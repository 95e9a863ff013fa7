package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/fsnotify/fsnotify"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// A gateway of a fleet has clients from the bundle that its office has signed and sealed to it. Any program may put a
// newer one into the file that the settings name. The server reads it when it changes, and takes it over whole or not
// at all. What it refuses changes nothing.

// bundles is what the server has as part of a fleet.
type bundles struct {
	config  *config.Config    // as it was at the start: what counts here needs a restart
	folder  place.Folder      // where bundles are offered; without a Root: it could not be opened
	watcher *fsnotify.Watcher // of that directory; nil: it could not be opened
	kept    *setup.Kept
	taken   *os.File             // reports to the office which bundle is in force; nil: it could not be opened
	rekeyed map[string]time.Time // at the start: see setup.Bundles

	taking sync.Mutex // one bundle at a time is taken over. Lock it before Server.reading

	mu       sync.Mutex // guards the fields below
	inForce  *setup.Bundle
	before   *setup.Bundle     // the last one in force, if it cannot be opened any more: nothing older may follow it
	since    time.Time         // when it was taken over
	clients  int               // that it has
	seen     fs.FileInfo       // the file that was read last
	unkept   error             // why it is not kept for the next start
	refused  map[string]uint64 // offered files, by reason
	last     refused
	logged   map[string]time.Time // by reason: when a refusal was logged
	reported [sha256.Size]byte    // the bundle that was reported as old
}

// refused is a file that was offered and not taken.
type refused struct {
	what [sha256.Size]byte // the sum of the file; of one that cannot be read, of the error
	at   time.Time
	err  error
}

// openFleet opens where bundles are offered and kept, while that can be done. Without the former, the server starts
// with the bundle that it has kept.
func (s *Server) openFleet() error {
	if !s.config.Fleet.On() {
		return nil
	}
	m := newBundles(s.config)
	s.fleet = m
	var err error
	if m.kept, err = setup.OpenKept(s.config.State); err != nil {
		return err
	}
	s.keep(m.kept)
	s.openTaken(m)
	if err := s.openOffers(m); err != nil {
		s.log.Error("new bundles of the fleet go unnoticed: make the directory, and restart the server", "error", err)
	}
	return nil
}

func newBundles(c *config.Config) *bundles {
	m := &bundles{config: c, folder: place.Folder{Path: filepath.Dir(c.Fleet.Bundle)}, refused: make(map[string]uint64),
		logged: make(map[string]time.Time)}
	for _, reason := range setup.Reasons { // what was never seen cannot be seen rising
		m.refused[reason] = 0
	}
	return m
}

func (s *Server) openOffers(m *bundles) error {
	root, err := setup.OpenRoot(m.folder.Path)
	if err != nil {
		return err
	}
	s.keep(root)
	m.folder.Root = root
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	s.keep(watcher)
	if err := setup.Either(m.folder.Path, func() error { return watcher.Add(m.folder.Path) })(); err != nil {
		return err
	}
	m.watcher = watcher
	return nil
}

// joinFleet begins with the best bundle that there is.
func (s *Server) joinFleet() {
	now := s.now()
	found := setup.JoinFleet(s.config, s.clients, s.log, now)
	if found == nil {
		return
	}
	if s.fleet == nil { // for captured packets
		s.fleet = newBundles(s.config)
	}
	m := s.fleet
	m.rekeyed = found.Rekeyed
	if m.kept != nil {
		m.kept.InForce(found.Slot)
	}
	m.mu.Lock()
	m.before = found.Last
	m.mu.Unlock()
	best := found.Best()
	if best == nil {
		s.log.Error("no bundle of the fleet can be used: its clients cannot knock until the office has published one",
			"file", s.config.Fleet.Bundle, "error", errors.Join(found.Key, found.Refused))
		s.setGates()
		return
	}
	if best == found.Offered && !found.IsKept(best) {
		s.keepBundle(best)
	}
	s.belong(best)
	m.force(best, now)
	s.reportTaken(best, found.Since(best, now))
	s.log.Info("bundle of the fleet in force", "serial", best.Serial, "issued", best.Issued, "clients", m.clients)
	s.noteAge(now)
}

// force notes which bundle is in force. It forgets what is in it.
func (m *bundles) force(b *setup.Bundle, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inForce, m.since, m.clients = &setup.Bundle{Head: b.Head, Whole: b.Whole}, now, len(b.Contents.Clients)
}

// belong takes over what a bundle says about the gateway itself.
func (s *Server) belong(b *setup.Bundle) {
	s.identity.Fleet = b.Fleet.Server(b.Contents.Site)
	s.fleetGates = spa.GatesOf(b.Contents.Gates)
	s.setGates()
	s.joinSite(b.Contents.Site, b.Contents.Share)
}

// setGates combines the gateway's own gate keys with those that it has as part of a fleet.
func (s *Server) setGates() {
	s.identity.Gates = slices.Clone(s.ownGates)
	if f := s.config.Fleet; f.On() && !f.LocalClients {
		s.identity.Gates = nil
	}
	s.identity.Gates = append(s.identity.Gates, s.fleetGates...)
	s.changeGateKeys()
}

// keepBundle keeps a bundle for the next start. If that fails it counts until then.
func (s *Server) keepBundle(b *setup.Bundle) {
	m := s.fleet
	if m.kept == nil {
		return
	}
	err := m.kept.Save(b.Text)
	if err != nil {
		s.log.Error("the bundle of the fleet is taken over, but could not be kept: a restart may bring the one before back",
			"serial", b.Serial, "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unkept = err
}

// watchBundle takes over each bundle that is offered, until ctx ends.
func (s *Server) watchBundle(ctx context.Context) error {
	m := s.fleet
	var events chan fsnotify.Event
	var errs chan error
	if m.watcher != nil {
		events, errs = m.watcher.Events, m.watcher.Errors
	}
	again, old := time.NewTimer(0), time.NewTicker(time.Minute) // 0: it may have changed while the server started
	defer again.Stop()
	defer old.Stop()
	waiting := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-old.C:
			s.noteAge(s.now())
			if !waiting && s.missedBundle() {
				_, _ = s.takeBundle(ctx, true)
			}
		case <-again.C:
			waiting = false
			_, _ = s.takeBundle(ctx, true) // a refusal is logged
		case event, ok := <-events:
			if !ok {
				return nil
			}
			// A program may be writing the file: then it is read once more before it is refused.
			if s.concernsBundle(event) && !waiting {
				if _, err := s.takeBundle(ctx, false); err != nil {
					waiting = true
					again.Reset(settles)
				}
			}
		case _, ok := <-errs: // its queue overflowed
			if !ok {
				return nil
			}
			waiting = true
			again.Reset(0)
		}
	}
}

// missedBundle reports whether there is another file than was read last: not every file system reports changes, and
// none reports that a link now leads to another directory.
func (s *Server) missedBundle() bool {
	m := s.fleet
	if m.folder.Root == nil {
		return false
	}
	if err := place.InPlace(m.folder.Root, m.folder.Path); err != nil {
		return true
	}
	is, err := m.folder.Root.Lstat(filepath.Base(m.config.Fleet.Bundle))
	if err != nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen == nil || !os.SameFile(is, m.seen) || !is.ModTime().Equal(m.seen.ModTime()) || is.Size() != m.seen.Size()
}

// concernsBundle reports whether an event is about the file in which bundles are offered.
func (s *Server) concernsBundle(event fsnotify.Event) bool {
	if filepath.Clean(event.Name) == s.fleet.folder.Path && (event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename)) {
		s.log.Error("the directory of the fleet's bundles was moved away, so new ones go unnoticed: put it back, and "+
			"restart the server", "directory", s.fleet.folder.Path)
		return false
	}
	return filepath.Base(event.Name) == filepath.Base(s.fleet.config.Fleet.Bundle)
}

// takeBundle takes over the bundle that is offered, if there is a new one that is good. It returns what changed; nil if
// nothing did. With report, a bundle that is refused is logged and counted.
func (s *Server) takeBundle(ctx context.Context, report bool) (*control.Reloaded, error) {
	m := s.fleet
	m.taking.Lock()
	defer m.taking.Unlock()
	next, err := s.readBundle()
	if next == nil && err == nil {
		return nil, nil
	}
	if err != nil {
		if report {
			s.refuseBundle(refused{whatIs(err), s.now(), err})
		}
		return nil, err
	}
	s.keepBundle(next)
	return s.adoptBundle(context.WithoutCancel(ctx), next), nil
}

// offered is the error for a file that was read and is refused.
type offered struct {
	error
	what [sha256.Size]byte
}

func (o offered) Unwrap() error { return o.error }

// whatIs identifies what was refused.
func whatIs(err error) [sha256.Size]byte {
	if o, ok := errors.AsType[offered](err); ok {
		return o.what
	}
	return sha256.Sum256([]byte(err.Error()))
}

// readBundle reads the bundle that is offered; nil if it is the one in force, or if there is none.
func (s *Server) readBundle() (*setup.Bundle, error) {
	m := s.fleet
	if m.folder.Root == nil {
		return nil, fmt.Errorf("%s could not be opened when the server started: %w", m.folder.Path, fs.ErrNotExist)
	}
	if err := place.InPlace(m.folder.Root, m.folder.Path); err != nil {
		return nil, err
	}
	file := filepath.Base(m.config.Fleet.Bundle)
	seen, _ := m.folder.Root.Lstat(file) // before it is read: what changes then is read again
	m.mu.Lock()
	m.seen = seen
	m.mu.Unlock()
	text, err := setup.ReadOffered(m.folder, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	what := sha256.Sum256(text)
	m.mu.Lock()
	inForce, last := m.inForce, cmp.Or(m.inForce, m.before)
	m.mu.Unlock()
	if inForce != nil && inForce.Whole == what {
		return nil, nil
	}
	next, err := setup.TakeBundle(m.config, text, last, func() (*age.HybridIdentity, error) {
		return setup.ReadFleetKey(place.Folder{Path: s.dir, Root: s.root})
	})
	if err != nil {
		return nil, offered{err, what}
	}
	return next, nil
}

// logAgain is how often refusals with one reason are logged.
const logAgain = time.Minute

// refuseBundle counts and logs a file that is refused, once for each.
func (s *Server) refuseBundle(r refused) {
	m := s.fleet
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last.err != nil && m.last.what == r.what && m.last.at.After(m.since) {
		return
	}
	m.last = r
	reason := setup.Reason(r.err)
	m.refused[reason]++
	if at := m.logged[reason]; !at.IsZero() && r.at.Sub(at) < logAgain && !r.at.Before(at) {
		return
	}
	m.logged[reason] = r.at
	serial := slog.Attr{}
	if m.inForce != nil {
		serial = slog.Int64("in_force", m.inForce.Serial)
	}
	s.log.Error("bundle of the fleet refused: the one before stays in force", "file", m.config.Fleet.Bundle, "reason",
		reason, "error", r.err, serial)
}

// longestHold is about how long the line waits for one part of a bundle.
const longestHold = 500 * time.Microsecond

// adoptBundle puts a bundle into force. Clients that it has not, or that may do less, lose their grants now, and their
// packets on their way are refused. It holds up the line for short moments only, between which packets are decided.
func (s *Server) adoptBundle(ctx context.Context, b *setup.Bundle) *control.Reloaded {
	s.reading.Lock()
	defer s.reading.Unlock()
	changes, _ := s.clients.FleetChanges(b.Contents.Clients) // TakeBundle has tried that
	s.line.Lock()
	s.belong(b)
	s.line.Unlock()
	r := &control.Reloaded{Settings: []string{}, Added: []string{}, Changed: []string{}, Removed: []string{},
		Ended: []control.Grant{}}
	var ended []firewall.Grant
	for rest := changes; len(rest) > 0; {
		var some []firewall.Grant
		rest, some = s.followSome(ctx, rest, r)
		ended = append(ended, some...)
		runtime.Gosched() // a packet that waits is next
	}
	if slices.ContainsFunc(changes, func(c keys.Change) bool { return letsInMore(c.After) }) {
		s.line.Lock()
		s.expectNetworks(ctx, true)
		s.line.Unlock()
	}
	now := s.now()
	r.Ended = shown(ended)
	s.reportTaken(b, now)
	s.fleet.force(b, now)
	s.log.Info("bundle of the fleet taken over", "serial", b.Serial, "issued", b.Issued, "clients",
		len(b.Contents.Clients), "added", len(r.Added), "changed", len(r.Changed), "removed", len(r.Removed), "ended",
		len(r.Ended))
	s.recordBundle(b.Serial, r)
	s.noteAge(now)
	return r
}

// followSome makes as many of the changes as the line can wait for, and returns the others and the grants that ended.
func (s *Server) followSome(ctx context.Context, changes []keys.Change,
	r *control.Reloaded) (rest []keys.Change, ended []firewall.Grant) {
	s.line.Lock()
	defer s.line.Unlock()
	for start := time.Now(); len(changes) > 0 && time.Since(start) < longestHold; changes = changes[1:] {
		for _, c := range s.clients.ApplyFleet(changes[:1]) {
			tell(r, c)
			if c.Before != nil {
				ended = append(ended, s.shut(ctx, c.Before, c.After)...)
			}
		}
	}
	return changes, ended
}

// recordBundle records what a bundle changed.
func (s *Server) recordBundle(serial int64, r *control.Reloaded) {
	// A lost line is counted, for status.
	_ = s.audit.RecordAct(audit.Act{Time: s.now(), Act: "bundle", Program: "spa-server", By: audit.By{UID: os.Getuid()},
		More: []slog.Attr{slog.Int64("serial", serial), slog.Int("added", len(r.Added)),
			slog.Int("changed", len(r.Changed)), slog.Int("removed", len(r.Removed)), slog.Int("grants", len(r.Ended))}})
}

// noteAge logs once that the bundle in force is old.
func (s *Server) noteAge(now time.Time) {
	s.line.Lock()
	most := s.config.Fleet.MaxAge
	s.line.Unlock()
	m := s.fleet
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inForce == nil || m.reported == m.inForce.Whole || now.Sub(m.inForce.Issued) <= most {
		return
	}
	m.reported = m.inForce.Whole
	s.log.Error("the bundle of the fleet is old: revocations may not arrive; publish again, and see whether it gets here",
		"serial", m.inForce.Serial, "issued", m.inForce.Issued, "max_age", most)
}

// fleetStatus returns what the server knows of its fleet; nil if it is in none.
func (s *Server) fleetStatus(now time.Time) *control.Fleet {
	if s.fleet == nil {
		return nil
	}
	s.line.Lock()
	c, server, shared := s.config, s.identity.Fleet, s.sharedStatus()
	s.line.Unlock()
	st := &control.Fleet{ID: c.Fleet.ID.String(), Gateway: c.FleetName(), File: c.Fleet.Bundle,
		LocalClients: c.Fleet.LocalClients, MaxAge: c.Fleet.MaxAge.Seconds(), Shadowed: s.clients.Shadowed(),
		Shared: shared}
	if extra := len(st.Shadowed) - mostSeen; extra > 0 {
		st.Shadowed = st.Shadowed[:mostSeen]
	}
	st.Shadowed = append([]string{}, st.Shadowed...) // [] in JSON, not null
	m := s.fleet
	m.mu.Lock()
	defer m.mu.Unlock()
	st.Unwatched, st.Refused = m.watcher == nil, maps.Clone(m.refused)
	if m.inForce != nil {
		st.ServerID, st.Serial, st.Issued, st.Since = server.String(), m.inForce.Serial, m.inForce.Issued, m.since
		st.Clients, st.Age = m.clients, now.Sub(m.inForce.Issued).Seconds()
	}
	st.Old = m.inForce != nil && now.Sub(m.inForce.Issued) > c.Fleet.MaxAge
	if m.unkept != nil {
		st.Unkept = m.unkept.Error()
	}
	if m.last.err != nil {
		st.LastRefused = &control.RefusedBundle{At: m.last.at, Reason: setup.Reason(m.last.err), Why: m.last.err.Error()}
	}
	return st
}
