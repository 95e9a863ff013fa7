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
	// ErrUnconfirmed is returned by Watch when no client connected through a grant within the time given to Load. The
	// guard was removed, and the next load is a first load.
	ErrUnconfirmed = errors.New("no new connection came through a grant in time, so the guard was removed")
	// ErrTornDown is returned by Watch when Teardown, here or in another process, removed the guard. Only another
	// Load puts it back.
	ErrTornDown = errors.New("the guard was torn down")
	// ErrForeign is returned when a table of our name exists that is not ours. It is left unchanged.
	ErrForeign = guard.ErrForeign
)

// Grant lets one address or network reach ports until a time. Client and Service name the grant's owner: several
// clients may each hold a grant for the same address and port.
type Grant struct {
	Client, Service string
	// Source is the address that is admitted. A link-local IPv6 address carries the index of its interface as its
	// zone, because it means a different machine on each link; a link-local IPv4 address is refused for that reason.
	Source netip.Addr
	// Bits makes the grant one for the network of which Source is the first address: the length of its prefix.
	Bits uint8
	// Lent means that the client's file lends this address or network to it, wherever it knocked from.
	Lent  bool
	Ports []service.Ports // none: the grant is in the ledger only, and nothing of it in the kernel
	// To lists the destinations if the service is at addresses of its own (see Target); empty: this host's addresses.
	To    []netip.Addr
	Until time.Time
	// Asked is the first stamp of the request for it, by the client's clock; zero: not known. If it was asked for again,
	// it is that of the latest request.
	Asked time.Time

	// Once is whether the first flow to a port takes the grant for this port with it, and Taken whether one has, at
	// one of its ports. Grant and Load set Once if a port is one of Config.Once; Grants sets both.
	Once, Taken bool
}

// Match selects grants. The zero Match selects all.
type Match struct {
	Client   string     // grants of this client; empty: any
	Source   netip.Addr // grants that let in this address, on the link that its zone names, or on any; invalid: any
	Bits     uint8      // with Source: grants that let in any address of this network; 0: Source alone
	Peer     Peer       // grants for exactly this; zero: any
	Services []string   // grants for these services; nil: any
	Asked    time.Time  // grants asked for at or before this, or at a time that is not known; zero: any
}

// The guard's settings: see package guard.
type (
	Target    = guard.Target    // a service at addresses of its own
	KnockPort = guard.KnockPort // a UDP port on which knocks arrive
	Closed    = guard.Closed    // what packets without a grant get from a guarded port
	Mode      = guard.Mode      // what grants do in the host's firewall
	AdmitSets = guard.AdmitSets // the sets that hold grants in mode Admit
	Persist   = guard.Persist   // how the guard survives a flush by another tool
	Forward   = guard.Forward   // guarded ports that lead to a machine behind this host or to another port
	Process   = guard.Process   // a process that works for the firewall besides the daemon
)

const (
	Drop         = guard.Drop         // silence
	Reject       = guard.Reject       // TCP reset, ICMP port unreachable
	Guard        = guard.ModeGuard    // shut the guarded ports to all but clients with a grant
	Admit        = guard.ModeAdmit    // put grants into sets of the administrator's own table
	PersistOwner = guard.PersistOwner // the table is ours: no other process can change or flush it
	PersistFile  = guard.PersistFile  // the administrator's rule file holds the guard, as Rules prints it
)

// Names of backends.
const (
	BackendAuto     = "auto"         // nftables if the kernel has it, otherwise iptables
	BackendNftables = guard.Nftables // the guard described in the package documentation
	BackendIptables = guard.Iptables // the same through the iptables program, for kernels without nftables
	BackendDryRun   = "dry-run"      // decides and records in memory, opens nothing; ends the grants of earlier runs
)

// DefaultMark is the bit of the connection mark that admitted flows carry.
const DefaultMark = 0x20000000

// Config holds the settings of the guard and of the ledger.
type Config struct {
	Backend string          // empty: BackendAuto
	Guarded []service.Ports // ports that only grants open, at every address of this host
	Targets []Target        // services at addresses of their own
	Knock   []KnockPort
	Closed  Closed
	Trusted []string // interfaces whose packets pass
	TPROXY  bool     // accept packets that TPROXY rules assign to sockets, even of guarded ports
	Mark    uint32   // our bit of connection and packet marks; 0: DefaultMark
	State   string   // directory of the ledger; not needed for a dry run
	User    string   // a system user that may own the files in State, besides root; empty: root only

	Mode    Mode
	Admit   AdmitSets       // used in mode Admit
	Cut     []service.Ports // guarded ports whose sessions end with the grant
	Once    []service.Ports // guarded ports at which a grant admits one flow: see Grant.Once
	Persist Persist

	Forwards []Forward // guarded ports that lead elsewhere; the places that they lead to are guarded too

	// Networks means that grants may be for networks. With iptables, rules for them are then there from the load on.
	Networks bool

	// NoCarry keeps a first load from carrying flows that already exist.
	NoCarry bool

	// ConfirmBy is the client whose new flow confirms a guard on trial; empty: any client's does.
	ConfirmBy string

	// Keep reports whether a grant from the ledger may still be held. A grant that a client lost while no daemon ran
	// is not loaded into the kernel. Nil: keep all.
	Keep func(Grant) bool

	// Left is called after grants have ended, for whatever reason. It must return at once and call no method. Nil: none.
	Left func()

	// Now is the clock for computing how long grants still live, right before the kernel gets them, and for ending
	// them; nil: time.Now.
	Now func() time.Time

	knobs
}

// knobs are set by tests alone.
type knobs struct {
	plain  bool   // the table has no owner, as on older kernels
	bootID string // empty: the kernel's
	slots  int    // capacity of the ledger, in grants; 0: ledger.Slots
	size   uint32 // capacity of a set of grants, in elements; 0: guard.Size

	programs string // where to look for iptables, in the form of PATH; empty: the usual directories
	lock     string // the lock file of iptables; empty: the usual one
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

// spec returns the guard that c describes.
func (c *Config) spec() guard.Spec {
	return guard.Spec{
		Guarded: c.guarded(), Targets: c.targets(), Forwards: c.Forwards, Knock: c.Knock, Closed: c.Closed,
		Trusted: c.Trusted, TPROXY: c.TPROXY, Mark: c.Mark, State: c.State, User: c.User, Mode: c.Mode, Admit: c.Admit,
		Cut: c.Cut, Once: c.Once, Persist: c.Persist, Networks: c.Networks,
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

// guarded returns the guarded ports of this host, with those that forwards lead to.
func (c *Config) guarded() []service.Ports {
	return slices.Concat(c.Guarded, guard.LedHere(c.Forwards))
}

// targets returns the targets, with the machines that forwards lead to.
func (c *Config) targets() []Target { return slices.Concat(c.Targets, guard.LedAway(c.Forwards)) }

// portsAt returns the ports that a grant can open at a destination; invalid: this host.
func (c *Config) portsAt(to netip.Addr) []service.Ports {
	if !to.IsValid() {
		return c.guarded()
	}
	var ports []service.Ports
	for _, t := range c.targets() {
		if slices.ContainsFunc(t.Addresses, func(a netip.Addr) bool { return guard.Normal(a) == to }) {
			ports = append(ports, t.Ports...)
		}
	}
	return ports
}

// elementOf returns the element that admits a flow to a guarded port. The link of a link-local source is unknown.
func (c *Config) elementOf(l guard.Flow) guard.Element {
	e := guard.Element{Source: l.Remote.Addr(), Proto: l.Proto, Port: l.Local.Port()}
	if service.Covers(c.portsAt(l.Local.Addr()), l.Proto, e.Port) {
		e.To = l.Local.Addr()
	}
	return e
}

// guards reports whether the guard shuts the port that a flow goes to.
func (c *Config) guards(l guard.Flow) bool {
	e := c.elementOf(l)
	return service.Covers(c.portsAt(e.To), e.Proto, e.Port)
}

// Firewall keeps the guard and the grants. Its methods are safe for concurrent use.
type Firewall struct {
	cfg     Config
	log     *slog.Logger
	backend guard.Backend
	why     string // why BackendAuto chose the backend
	// sessions is nil in a dry run.
	sessions *sessions.Sessions
	timed    func(time.Duration) // nil: not measured

	mu     sync.Mutex // guards the fields below, and the order of batches
	ledger *ledger.Ledger
	held   *ledger.Book
	ends   ends
	state  state
	spans  []guard.Span // of networks for which the guard in place has rules
	coming []guard.Span // of networks that the grants in progress let in
	back   uint64       // put-backs
	unsaid int          // those since the last log line about them
	said   time.Time    // when that line was logged
}

// state is what Watch needs to put the guard back as it was.
type state struct {
	loaded    bool            // our table should be in the kernel
	missing   bool            // it is not: putting it back failed
	confirmBy time.Time       // zero: the guard needs no confirmation
	carried   []guard.Carried // flows that a first load carries
	earlier   []guard.Flow    // with cfg.ConfirmBy: flows from before that client held a grant
}

// New opens everything that the firewall needs later and probes the kernel's abilities. It changes no rule. After New
// the firewall creates, renames and opens no file, and CAP_NET_ADMIN is the only privilege it needs.
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
		err = fmt.Errorf("unknown backend %q; use %q, %q, %q or %q",
			f.cfg.Backend, BackendAuto, BackendNftables, BackendIptables, BackendDryRun)
	}
	return err
}

// openLedger opens the ledger, which root or c.User owns.
func openLedger(c *Config) (*ledger.Ledger, error) {
	var l *ledger.Ledger
	err := statefile.AsOwner(c.User, func() (err error) { l, err = ledger.Open(c.State, c.bootID, c.slots); return err })
	return l, err
}

// Describe returns a sentence that names the backend and what this kernel lacks.
func (f *Firewall) Describe() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend.Describe() + f.why
}

// BackendName returns the name of the backend in use: one of the Backend constants, but never BackendAuto.
func (f *Firewall) BackendName() string { return f.backend.Name() }

// Persists reports whether the guard survives a flush of the rule set by another tool while no daemon runs.
func (f *Firewall) Persists() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend.Persists()
}

// Processes returns the running processes that work for the firewall besides the daemon.
func (f *Firewall) Processes() []Process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend.Processes()
}

// Close closes the kernel's sockets and the ledger. Guard and grants stay.
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

// GrantsOf returns the grants of one client that are live at now. Its cost does not depend on the number of other
// clients' grants.
func (f *Firewall) GrantsOf(client string, now time.Time) []Grant {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil || client == "" {
		return nil
	}
	return live(f.held, Match{Client: client}, now)
}
