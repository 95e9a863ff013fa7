package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
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
	"sallyport/spa/sandbox"
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

// Target is a service at addresses of its own: of machines behind this host, or some of the
// host's. A grant reaches it only if it names the address in To, and a grant that names none
// does not.
type Target struct {
	Addresses []netip.Addr
	Ports     []service.Ports
}

// Match picks grants. The zero Match picks all.
type Match struct {
	Client   string     // of this client; empty: any
	Source   netip.Addr // for this address, on the link that its zone names or on any; invalid: any
	Services []string   // of these services; nil: any
}

// Closed says what a stranger gets from a guarded port.
type Closed uint8

// A host whose closed ports answer is hidden better by Reject, any other by Drop.
const (
	Drop   Closed = iota // silence
	Reject               // TCP reset, ICMP port unreachable
)

// KnockPort is a UDP port on which knocks arrive. One that is not Shared belongs to us
// alone: connection tracking does not see it, and the host answers as at any closed port. A
// shared one is served by the host itself and left alone.
type KnockPort struct {
	Port   uint16
	Shared bool
}

// Names of backends.
const (
	BackendAuto     = "auto"     // nftables where the kernel has it, else iptables
	BackendNftables = "nftables" // the guard described in the package documentation
	BackendIptables = "iptables" // the same, by the program iptables, for kernels without nftables
	BackendDryRun   = "dry-run"  // decides and records in memory, opens nothing; ends what earlier runs granted
)

// Mode says what grants are to the host's firewall.
type Mode uint8

const (
	// Guard shuts the guarded ports but for those that hold a grant.
	Guard Mode = iota
	// Admit is for a host that drops by default: grants are elements of sets in the
	// administrator's own table, and his rules say what they open.
	Admit
)

// AdmitSets are the sets that grants go into in mode Admit. Their keys are address .
// inet_proto . inet_service, and they have the timeout flag.
type AdmitSets struct {
	Family, Table string // "inet", "ip" or "ip6"; the table's name
	Set4, Set6    string // for IPv4 and IPv6 sources; one may be empty
}

// Persist says who sees to it that the guard outlives a foreign flush of the rule set.
type Persist uint8

const (
	// PersistOwner makes the table our own, where the kernel can do that: nobody else
	// can change or flush it, also while no daemon runs.
	PersistOwner Persist = iota
	// PersistFile leaves the table without an owner, because the administrator's own
	// rule file holds the guard as Rules prints it. A table that has an owner cannot be
	// loaded from a file.
	PersistFile
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
	size   uint32 // elements that a set of grants holds; 0: setSize

	programs string // where iptables is looked for, as PATH; empty: where systems have it
	lock     string // the lock of iptables; empty: where systems have it
	why      string // why auto chose this backend
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
		c.size = setSize
	}
}

func (c *Config) check() error {
	if bits.OnesCount32(c.Mark) != 1 {
		return fmt.Errorf("mark %#x must be a single bit", c.Mark)
	}
	if c.Closed > Reject {
		return fmt.Errorf("unknown way of closing %d", c.Closed)
	}
	for _, name := range c.Trusted {
		if err := service.ValidInterface(name); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	for _, p := range slices.Concat(c.Guarded, c.Cut) {
		if err := guard.CheckPorts(p); err != nil {
			return err
		}
	}
	for _, t := range c.Targets {
		if err := t.check(); err != nil {
			return err
		}
	}
	if c.Persist > PersistFile {
		return fmt.Errorf("unknown way to persist %d", c.Persist)
	}
	return c.checkMode()
}

func (c *Config) checkMode() error {
	switch {
	case c.Mode == Guard:
		return nil
	case c.Mode != Admit:
		return fmt.Errorf("unknown mode %d", c.Mode)
	case c.Backend == BackendIptables:
		return errors.New("mode admit puts grants into sets of nftables, and iptables has none; use backend nftables")
	case len(c.Cut) > 0:
		return errors.New("in mode admit your own table decides how long sessions last: for ports whose sessions are to " +
			"end with the grant, leave them out of its rule for established connections, and on_expiry as it is")
	case !slices.Contains([]string{"inet", "ip", "ip6"}, c.Admit.Family):
		return fmt.Errorf("mode admit: %q is no family of tables; there are inet, ip and ip6", c.Admit.Family)
	case c.Admit.Table == "" || c.Admit.Set4 == "" && c.Admit.Set6 == "":
		return errors.New("mode admit needs the name of a table and of at least one set in it")
	}
	for _, name := range []string{c.Admit.Table, c.Admit.Set4, c.Admit.Set6} {
		if err := service.ValidTable(name); name != "" && err != nil {
			return fmt.Errorf("mode admit: %q: %w", name, err)
		}
	}
	return nil
}

// everyPort are the ports that are guarded, here or at a target.
func (c *Config) everyPort() []service.Ports {
	ports := slices.Clone(c.Guarded)
	for _, t := range c.Targets {
		ports = append(ports, t.Ports...)
	}
	slices.SortFunc(ports, guard.ComparePorts)
	return slices.Compact(ports)
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

func (t *Target) check() error {
	for _, a := range t.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("a service cannot be at the address %v", a)
		}
	}
	for _, p := range t.Ports {
		if err := guard.CheckPorts(p); err != nil {
			return err
		}
	}
	return nil
}

// Firewall keeps the guard and the grants. Its methods may be called from several
// goroutines.
type Firewall struct {
	cfg     Config
	log     *slog.Logger
	backend backend
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
		if f.backend, err = choose(&f.cfg, f.log); err != nil {
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
	return f.backend.describe() + f.cfg.why
}

// BackendName is the name of what enforces: a Backend constant, but never BackendAuto.
func (f *Firewall) BackendName() string { return f.backend.name() }

// Persists reports whether the guard outlives a foreign flush of the rule set while no
// daemon runs.
func (f *Firewall) Persists() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend.persists()
}

// A Process is one that works for the firewall beside the daemon.
type Process struct {
	Name string
	PID  int
	Left sandbox.State // of its privileges
}

// Processes returns those that live.
func (f *Firewall) Processes() []Process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend.processes()
}

// Close lets go of the kernel and the ledger. Guard and grants stay.
func (f *Firewall) Close() error {
	var errs []error
	if f.backend != nil {
		errs = append(errs, f.backend.close())
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
