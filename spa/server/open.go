package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/action"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/capture/gate"
	"sallyport/spa/config"
	"sallyport/spa/policy"
	"sallyport/spa/recovery"
	"sallyport/spa/replay"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/feed"
	"sallyport/spa/server/metrics"
	"sallyport/spa/server/setup"
)

// Options are the settings of the command line.
type Options struct {
	// Confirm, if not zero, is how long a guard may stay without a new flow through a grant before it is removed.
	Confirm time.Duration
	// ConfirmBy, if not empty, is the recovery client whose flow that must be.
	ConfirmBy string
	// Log receives what the administrator should know. Nil discards it.
	Log *slog.Logger
	// Version is the program's version, for status.
	Version string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Server is a running gateway. It exists only once everything is open and privileges are dropped.
type Server struct {
	log   *slog.Logger
	now   func() time.Time
	named string // the program's version
	since time.Time
	dir   string   // of the configuration
	root  *os.Root // the same, opened while that can be done
	seen  *sightings
	feed  *feed.Feed

	// reading is held while changed files are read and applied: an older reading must not replace a newer one. Lock it
	// before line.
	reading sync.Mutex

	// line is held while a packet is decided, and while a client is shut out or the configuration is swapped: a revoked
	// client must not get a grant from a packet that was opened a moment earlier.
	line       sync.Mutex
	config     *config.Config
	identity   spa.Identity
	ownGates   []spa.Gate // of gate.key
	fleetGates []spa.Gate // of the fleet's bundle
	opener     spa.Opener
	clients    *keys.Registry
	policy     *policy.Policy
	journal    *replay.Journal
	uses       *recovery.Book
	checks     checks
	firewall   *firewall.Firewall
	actions    *action.Book // nil: no service has a program
	audit      *audit.Log
	sniffer    sniffer
	responder  responder
	socket     *control.Listener
	metrics    *metrics.Page // nil: there is none
	manager    *net.UnixConn // nil: the server was not started by systemd
	watcher    *fsnotify.Watcher
	fleet      *bundles // nil: the gateway is in no fleet
	shared     sharing
	sandbox    sandbox.State
	files      sandbox.Files // that can be opened still

	opened []io.Closer // in the order in which they were opened
}

// Open opens everything that the gateway needs, loads the guard, and drops privileges. It reads no packet. On an
// error it closes everything that it opened; a loaded guard stays.
func Open(ctx context.Context, c *config.Config, o Options) (*Server, error) {
	s := &Server{config: c, dir: c.Dir, log: o.Log, now: o.Now, named: o.Version, seen: newSightings(), feed: feed.New()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.since = s.now()
	for _, step := range []func() error{
		s.requireRights, setup.Either(s.inState(setup.LockFile), s.openLock), s.openDir,
		setup.Either(s.clientsDir(), s.openWatcher), // before the files are read: a change in between waits in its queue
		s.openFleet, s.openKeys, setup.Either(s.inState(config.JournalFile), s.openJournal), s.openUses,
		setup.Either(c.Audit.File, s.openAudit),
		func() error { return s.openFirewall(ctx, o) }, s.openActions,
		s.openSockets, setup.Either(s.inState(control.SocketName), s.openControl), s.openShare, s.openMetrics, s.openNotify,
		s.dropPrivileges,
	} {
		err := ctx.Err()
		if err == nil {
			err = step()
		}
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	// Memory that starting needed, as much as the clients themselves, is returned now: an idle server would keep it.
	debug.FreeOSMemory()
	return s, nil
}

// Close closes what Open opened, the latest first. Guard and grants stay.
func (s *Server) Close() error {
	var errs []error
	for i := len(s.opened) - 1; i >= 0; i-- {
		errs = append(errs, s.opened[i].Close())
	}
	s.opened = nil
	return errors.Join(errs...)
}

func (s *Server) keep(c io.Closer) { s.opened = append(s.opened, c) }

func (s *Server) inState(file string) string { return filepath.Join(s.config.State, file) }

func (s *Server) openLock() error {
	lock, err := setup.Lock(s.config.State)
	if err != nil {
		return err
	}
	s.keep(lock)
	return nil
}

func (s *Server) openDir() error {
	root, err := setup.OpenRoot(s.dir)
	if err != nil {
		return err
	}
	s.root = root
	s.keep(root)
	return nil
}

// openKeys reads the gate key and the clients. A client's bad file shuts out that client alone.
func (s *Server) openKeys() error {
	var gates keys.Gates
	err := setup.AsServer(s.log, func() (err error) {
		gates, err = keys.ReadGateIn(s.root, s.dir, config.GateFile)
		return err
	})
	if err != nil {
		return err
	}
	s.identity = spa.Identity{Server: s.config.ServerID, Window: s.config.Window}
	s.ownGates = spa.GatesOf(gates)
	s.setGates()

	var problems []error
	s.clients, problems = setup.LoadClients(s.clientsDir())
	s.keep(s.clients)
	for _, problem := range problems {
		s.log.Error(shutOutFor, "error", problem)
	}
	s.joinFleet()
	return nil
}

func (s *Server) openJournal() error {
	path := filepath.Join(s.config.State, config.JournalFile)
	journal, err := replay.Open(path, replay.Config{Window: s.config.Window, LiveNonces: s.config.Limits.LiveNonces},
		s.now())
	if err != nil {
		return err
	}
	s.journal = journal
	s.keep(journal)
	if status := journal.Status(); s.now().Before(status.FloorUntil) {
		s.log.Warn("refusing all knocks for now, so that none from before the start works twice", "until",
			status.FloorUntil, "why", status.Reason)
	}
	return nil
}

func (s *Server) openAudit() error {
	log, err := s.auditLog()
	if err != nil {
		return err
	}
	s.audit = log
	s.keep(log)
	log.SetOrigin(s.config.Name, s.named)
	uid, _, ok := setup.Account(setup.SystemUser)
	if !ok {
		return nil // a user without a name owns nothing
	}
	if err := log.Give(uid); err != nil {
		s.log.Warn("the server could not open a new audit log with the owner of this one, as logrotate makes it", "error",
			err)
	}
	return nil
}

func (s *Server) auditLog() (*audit.Log, error) {
	if s.config.Audit.Journal {
		return audit.OpenJournal(audit.JournalSocket, s.log)
	}
	return audit.Open(s.config.Audit.File, s.log)
}

func (s *Server) openFirewall(ctx context.Context, o Options) error {
	if err := s.mayConfirm(o.ConfirmBy); err != nil {
		return err
	}
	loading := setup.Loading{Confirm: o.Confirm, ConfirmBy: o.ConfirmBy, Now: s.now, Log: s.log,
		Left: func() { s.actions.Left() }}
	if s.fleet != nil {
		loading.Rekeyed = s.fleet.rekeyed
	}
	fw, err := setup.OpenGuard(ctx, s.config, s.clients, loading)
	if err != nil {
		return err
	}
	s.firewall = fw
	s.keep(fw)
	s.policy = policy.New(s.config, fw)
	return nil
}

// requireRights checks the capabilities that opening everything takes.
func (s *Server) requireRights() error {
	return sandbox.Require(!s.config.Bound() || s.config.Firewall.Backend == firewall.BackendIptables)
}

// sniffer is where packets come from: a [capture.Sniffer] or a [capture.Bound].
type sniffer interface {
	Read() (capture.Packet, error)
	Stats() capture.Stats
	Interfaces() []string
	Gate() capture.Gating
	SetGateKeys(keys []gate.Key)
	Copied(p capture.Packet, elsewhere bool)
	Close() error
}

// responder sends receipts: a [capture.Responder] or a [capture.Bound].
type responder interface {
	Send(p capture.Packet, payload []byte, keep bool) error
	Close() error
}

func (s *Server) openSockets() error {
	mark := cmp.Or(s.config.Firewall.Mark, firewall.DefaultMark)
	c := s.gated(captureConfig(s.config))
	s.feed.Kernel(s.refusedInKernel)
	if s.config.Bound() {
		bound, err := capture.Bind(c, mark)
		if err != nil {
			return fmt.Errorf("capture.mode = \"udp\": %w (ss -ulnp shows who has the port)", err)
		}
		s.sniffer, s.responder = bound, bound
		s.keep(bound)
		s.reportGate()
		return nil
	}
	sniffer, err := capture.Listen(c)
	if err != nil {
		return err
	}
	s.sniffer = sniffer
	s.keep(sniffer)
	s.reportGate()
	// Open it even if receipts are off: a reload may turn them on, and could not open it then.
	responder, err := capture.NewResponder(mark)
	if err != nil {
		return err
	}
	s.responder = responder
	s.keep(responder)
	return nil
}

// dropPrivileges drops everything that is not needed to read packets, change the firewall and read changed client
// files, and makes sure that the last still works.
func (s *Server) dropPrivileges() error {
	s.files = s.reachable()
	state, err := sandbox.Drop(setup.SystemUser, s.files)
	if err != nil {
		return err
	}
	s.sandbox = state
	return s.readable()
}

// reachable returns what will be opened later: the configuration, including where links lead, and a new audit log
// after rotation. The state is already open, except for what is removed at the end.
func (s *Server) reachable() sandbox.Files {
	_ = time.Local.String() // reads the machine's time zone, once
	files := sandbox.Files{Read: []string{s.dir, s.clientsDir()}, Write: []string{s.config.State}}
	if real, err := filepath.EvalSymlinks(filepath.Join(s.dir, config.FileName)); err == nil {
		files.Read = append(files.Read, filepath.Dir(real))
	}
	if s.config.Fleet.On() {
		files.Read = append(files.Read, filepath.Dir(s.config.Fleet.Bundle))
	}
	if s.config.Audit.File != "" {
		files.Write = append(files.Write, filepath.Dir(s.config.Audit.File))
	}
	if s.config.Audit.Journal {
		files.Talk = append(files.Talk, filepath.Dir(audit.JournalSocket))
	}
	return files
}
