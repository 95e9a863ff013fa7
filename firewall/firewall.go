package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sallyport/firewall/internal/clock"
	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/sessions"
	"sallyport/firewall/internal/statefile"
	"sallyport/keys/service"
)

// Sentinel errors.
var (
	// ErrFull is returned by Grant when the table has no room for another grant. Nothing
	// was granted; live grants go on, and room comes back as they end.
	ErrFull = guard.ErrFull
	// ErrUnconfirmed is returned by Watch when nobody came in through a grant before the
	// time that Load was given. The guard has been taken away, and the next load is a
	// first load.
	ErrUnconfirmed = errors.New("no new connection came through a grant in time, so the guard was taken away")
	// ErrTornDown is returned by Watch when Teardown, here or in another process, took
	// the guard away. Nothing puts it back but another Load.
	ErrTornDown = errors.New("the guard was torn down")
	// ErrForeign is returned where there is a table of our name that is not ours. It is
	// left as it is.
	ErrForeign = guard.ErrForeign
)

// Grant lets one address reach ports until a time. Client and Service say on whose behalf;
// several clients may hold a grant for the same address and port, and each has its own.
type Grant struct {
	Client, Service string
	// Source is the address that is let in. A link-local IPv6 address has the index of its
	// interface as its zone, because it means another machine on every link; for the same
	// reason a link-local IPv4 address is refused.
	Source netip.Addr
	Ports  []service.Ports
	// To are the destinations, where the service is at addresses of its own (see Target);
	// none: this host's addresses.
	To    []netip.Addr
	Until time.Time
}

// Match picks grants. The zero Match picks all.
type Match struct {
	Client   string     // of this client; empty: any
	Source   netip.Addr // for this address, on the link that its zone names or on any; invalid: any
	Services []string   // of these services; nil: any
}

// What a guard is made of: see package guard.
type (
	Target    = guard.Target    // a service at addresses of its own
	KnockPort = guard.KnockPort // a UDP port on which knocks arrive
	Closed    = guard.Closed    // what a stranger gets from a guarded port
	Mode      = guard.Mode      // what grants are to the host's firewall
	AdmitSets = guard.AdmitSets // the sets that grants go into in mode Admit
	Persist   = guard.Persist   // who sees to it that the guard outlives a foreign flush
	Process   = guard.Process   // a process that works for the firewall beside the daemon
)

const (
	Drop         = guard.Drop         // silence
	Reject       = guard.Reject       // TCP reset, ICMP port unreachable
	Guard        = guard.ModeGuard    // shut the guarded ports but for those that hold a grant
	Admit        = guard.ModeAdmit    // put grants into sets of the administrator's own table
	PersistOwner = guard.PersistOwner // the table is our own: nobody else can change or flush it
	PersistFile  = guard.PersistFile  // the administrator's own rule file holds the guard, as Rules prints it
)

// Names of backends.
const (
	BackendAuto     = "auto"         // nftables where the kernel has it, else iptables
	BackendNftables = guard.Nftables // the guard described in the package documentation
	BackendIptables = guard.Iptables // the same, by the program iptables, for kernels without nftables
	BackendDryRun   = "dry-run"      // decides and records in memory, opens nothing; ends what earlier runs granted
)

// DefaultMark is the bit of the connection mark that admitted flows carry.
const DefaultMark = 0x20000000

// Config is what the guard is made of.
type Config struct {
	Backend string          // empty: BackendAuto
	Guarded []service.Ports // ports that only grants open, at every address of this host
	Targets []Target        // services at addresses of their own
	Knock   []KnockPort
	Closed  Closed
	Trusted []string // interfaces whose packets pass
	TPROXY  bool     // accept packets that TPROXY rules assign to sockets, even of guarded ports
	Mark    uint32   // one bit of connection and packet marks that is ours; 0: DefaultMark
	State   string   // directory of the ledger; not needed for a dry run
	User    string   // a system user that may own the files of State, like root; empty: root alone

	Mode    Mode
	Admit   AdmitSets       // where Mode is Admit
	Cut     []service.Ports // guarded ports whose sessions end with the grant
	Persist Persist

	// NoCarry keeps a first load from carrying the flows that are established already.
	NoCarry bool

	// Keep says of each grant that the ledger brings back whether it still may be held: what
	// was taken from a client while nothing ran is not carried into the kernel. Nil: all.
	Keep func(Grant) bool

	// Now is the clock by which it is computed how long grants still live right before the
	// kernel is told, and by which Watch ends them; nil: time.Now.
	Now func() time.Time

	plain  bool   // the table has no owner, as on older kernels
	bootID string // empty: the kernel's
	slots  int    // grants that the ledger holds; 0: ledgerSlots
	size   uint32 // elements that a set of grants holds; 0: guard.Size

	programs string // where iptables is looked for, as PATH; empty: where systems have it
	lock     string // the lock of iptables; empty: where systems have it
}

func (c *Config) setDefaults() {
	if c.Backend == "" {
		c.Backend = BackendAuto
	}
	if c.Mark == 0 {
		c.Mark = DefaultMark
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.slots == 0 {
		c.slots = ledger.Slots
	}
	if c.size == 0 {
		c.size = guard.Size
	}
}

// spec is the guard that c asks for.
func (c *Config) spec() guard.Spec {
	return guard.Spec{
		Guarded: c.Guarded, Targets: c.Targets, Knock: c.Knock, Closed: c.Closed, Trusted: c.Trusted, TPROXY: c.TPROXY,
		Mark: c.Mark, State: c.State, User: c.User, Mode: c.Mode, Admit: c.Admit, Cut: c.Cut, Persist: c.Persist,
		Now: c.Now, Size: c.size, Plain: c.plain, Programs: c.programs, Lock: c.lock,
	}
}

func (c *Config) check() error {
	if c.Mode == Admit && c.Backend == BackendIptables {
		return errors.New("mode admit puts grants into sets of nftables, and iptables has none; use backend nftables")
	}
	spec := c.spec()
	return spec.Check()
}

// portsAt are the ports that a grant can open at a destination; invalid: this host.
func (c *Config) portsAt(to netip.Addr) []service.Ports {
	if !to.IsValid() {
		return c.Guarded
	}
	var ports []service.Ports
	for _, t := range c.Targets {
		if slices.ContainsFunc(t.Addresses, func(a netip.Addr) bool { return guard.Normal(a) == to }) {
			ports = append(ports, t.Ports...)
		}
	}
	return ports
}

// elementOf is what a flow to a guarded port needs a grant for. Where its source is
// link-local, the link is not known.
func (c *Config) elementOf(l guard.Flow) guard.Element {
	e := guard.Element{Source: l.Remote.Addr(), Proto: l.Proto, Port: l.Local.Port()}
	if guard.Contains(c.portsAt(l.Local.Addr()), l.Proto, e.Port) {
		e.To = l.Local.Addr()
	}
	return e
}

// guards reports whether the guard shuts where a flow goes to.
func (c *Config) guards(l guard.Flow) bool {
	e := c.elementOf(l)
	return guard.Contains(c.portsAt(e.To), e.Proto, e.Port)
}

// Firewall keeps the guard and the grants. Its methods may be called from several
// goroutines.
type Firewall struct {
	cfg     Config
	log     *slog.Logger
	backend guard.Backend
	why     string // why auto chose it
	// sessions is nil in a dry run.
	sessions *sessions.Sessions

	mu     sync.Mutex // guards what follows, and the order of batches
	ledger *ledger.Ledger
	held   *ledger.Book
	ends   ends
	guard  state
	unsaid int       // put-backs that the log does not have yet
	said   time.Time // when it had the last
}

// state is what Watch needs to know to put the guard back as it was.
type state struct {
	loaded    bool            // our table should be in the kernel
	missing   bool            // it is not, for all that was tried
	confirmBy time.Time       // zero: the guard needs no confirmation
	carried   []guard.Carried // by a first load
}

// New opens all that the firewall needs later and asks the kernel what it can do. It
// changes no rule. After New no file is created, renamed or opened, and CAP_NET_ADMIN is
// the only privilege that is needed.
func New(c Config, log *slog.Logger) (*Firewall, error) {
	c.setDefaults()
	if err := c.check(); err != nil {
		return nil, err
	}
	f := &Firewall{cfg: c, log: log}
	if err := f.open(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Firewall) open() error {
	var err error
	switch f.cfg.Backend {
	case BackendAuto, BackendNftables, BackendIptables:
		if f.backend, f.why, err = choose(f.cfg.Backend, f.cfg.spec(), f.log); err != nil {
			return err
		}
		if f.sessions, err = sessions.Open(); err != nil {
			return err
		}
		if f.ledger, err = openLedger(&f.cfg); err != nil {
			return err
		}
		f.ends.alarm, err = clock.OpenAlarm()
	case BackendDryRun:
		f.backend = newDryRun(f.log)
		f.ledger = ledger.InMemory(f.cfg.slots)
	default:
		err = fmt.Errorf("unknown backend %q; there are %q, %q, %q and %q",
			f.cfg.Backend, BackendAuto, BackendNftables, BackendIptables, BackendDryRun)
	}
	return err
}

// openLedgerOf opens the ledger, which root or c.User owns.
func openLedger(c *Config) (*ledger.Ledger, error) {
	var l *ledger.Ledger
	err := statefile.AsOwner(c.User, func() (err error) { l, err = ledger.Open(c.State, c.bootID, c.slots); return err })
	return l, err
}

// Describe says in a sentence what guards, and what this kernel lacks.
func (f *Firewall) Describe() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend.Describe() + f.why
}

// BackendName is the name of what enforces: a Backend constant, but never BackendAuto.
func (f *Firewall) BackendName() string { return f.backend.Name() }

// Persists reports whether the guard outlives a foreign flush of the rule set while no
// daemon runs.
func (f *Firewall) Persists() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend.Persists()
}

// Processes returns those that live.
func (f *Firewall) Processes() []Process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend.Processes()
}

// Close lets go of the kernel and the ledger. Guard and grants stay.
func (f *Firewall) Close() error {
	var errs []error
	if f.backend != nil {
		errs = append(errs, f.backend.Close())
	}
	if f.sessions != nil {
		errs = append(errs, f.sessions.Close())
	}
	if f.ledger != nil {
		errs = append(errs, f.ledger.Close())
	}
	if f.ends.alarm != nil {
		errs = append(errs, f.ends.alarm.Close())
	}
	return errors.Join(errs...)
}

// Grants returns the grants that live at now, by client, service and address. A grant of
// many port ranges may be told in several parts.
func (f *Firewall) Grants(now time.Time) []Grant {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil {
		return nil
	}
	return live(f.held, Match{}, now)
}

// GrantsOf returns the grants of one client that live at now. Its cost does not grow with
// those of others.
func (f *Firewall) GrantsOf(client string, now time.Time) []Grant {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil || client == "" {
		return nil
	}
	return live(f.held, Match{Client: client}, now)
}
