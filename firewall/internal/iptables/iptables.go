// Package iptables implements the guard with iptables and ipset, for kernels without nftables. A helper process runs
// the programs.
package iptables

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/nl"
)

// Names of sets, without the family's suffix.
const (
	SetGrants = "spa-grants" // source and port, at this host
	setReach  = "spa-reach"  // source, port and destination, at targets
	setNets   = "spa-nets"   // network and port, at this host
	setNetsAt = "spa-netsat" // destination, port and network, at targets
	setNear   = "spa-near"   // link-local source and port,
	setLinks  = "spa-links"  // and its interface
	SetMet    = "spa-met"    // source and port that a grant admitted; rules fill it
	setLinked = "spa-linked" // link-local source that was admitted, and its interface; rules fill it
	setAway   = "spa-away"   // destination of a flow that a target begins, and its interface; rules fill it
	setLed    = "spa-led"    // source and port to which a grant leads, at this host
	setLedTo  = "spa-ledto"  // source, port and machine to which a grant leads
	setFlows  = "spa-flows"  // carried flows: remote address and port, own address
	SetPeers  = "spa-peers"  // carried flows: remote address, own port
	SetProbe  = "spa-probe"
)

var (
	// errBusy is returned when another program holds the lock of iptables.
	errBusy = errors.New("another program holds the lock of iptables")

	// errNoSets is returned when the kernel has no ipset, or iptables no match for sets.
	errNoSets = errors.New("iptables cannot guard without ipset, which ends grants on time")
)

// foreignError describes foreign chains with our names. It is guard.ErrForeign.
type foreignError string

func (e foreignError) Error() string        { return "" + string(e) }
func (e foreignError) Is(target error) bool { return target == guard.ErrForeign }

// Backend keeps the guard with iptables, which its helper runs. Grants are elements of ipsets, which need no program.
type Backend struct {
	Spec   guard.Spec
	log    *slog.Logger
	Helper *Helper
	Sets   *ipset.Conn
	names  *netlink.Conn            // for names of interfaces
	near   map[netip.Addr]*neighbor // link-local sources that have grants
	events *netlink.Conn            // changes by other tools; nil for legacy iptables
	legacy *LegacyTables            // for noticing changes in legacy tables; nil otherwise

	poked chan struct{} // Watch must check
	leads atomic.Bool   // the table nat has chains of ours

	Mu     sync.Mutex // guards the fields below, and keeps Watch from checking during a load
	loaded bool       // by this process
	fresh  bool       // loaded by this process and not checked since
	digest string     // of what was loaded
	trial  bool       // the guarded ports are elements that expire by themselves

	span  sync.Mutex // guards the field below; a grant must not wait for a check of the guard
	until time.Time  // the last end of any element
}

var _ guard.Backend = (*Backend)(nil)

// New starts the helper and opens the sockets. It returns an error if iptables or the kernel cannot guard.
func New(c guard.Spec, log *slog.Logger) (guard.Backend, error) {
	if err := can(&c); err != nil {
		return nil, err
	}
	b := &Backend{Spec: c, log: log, poked: make(chan struct{}, 1), near: make(map[netip.Addr]*neighbor)}
	if err := b.open(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// can returns an error for settings that iptables does not support.
func can(c *guard.Spec) error {
	if c.Closed == guard.Reject {
		return errors.New(`iptables cannot reject where the guard stands: set closed = "drop", or use nftables`)
	}
	if c.Mode != guard.ModeGuard {
		return errors.New(`mode "admit" needs nftables: it fills sets of nftables`)
	}
	if len(c.Once) > 0 {
		return errors.New("iptables cannot admit one connection only: remove once = true from the services, or set " +
			`firewall.backend = "nftables"`)
	}
	for _, name := range c.Trusted {
		if err := checkInterface(name); err != nil {
			return err
		}
	}
	return canCut(c)
}

func (b *Backend) open() error {
	if err := b.openSets(); err != nil {
		return err
	}
	var err error
	if b.names, err = netlink.Dial(unix.NETLINK_ROUTE, nil); err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	if b.Helper, err = startHelper(b.Spec.Programs, "", b.Spec.Lock); err != nil {
		return err
	}
	if err := b.probedSets(); err != nil {
		return err
	}
	if b.Helper.Legacy {
		b.legacy, err = OpenLegacyTables(b.Helper.NoIPv6)
	} else {
		b.events, err = nl.Changes(0)
	}
	if err != nil {
		return fmt.Errorf("listening for changes of the rules: %w", err)
	}
	return nil
}

// openSets opens the socket for sets, and makes those for the helper's trial rules.
func (b *Backend) openSets() error {
	sets, err := ipset.Open()
	if errors.Is(err, unix.EPERM) {
		return err
	}
	if err != nil {
		return noSets(err)
	}
	b.Sets = sets
	for _, v6 := range []bool{false, true} {
		for kind, name := range triedSets {
			if err := sets.Create(b.AddressSet(name, kind, v6)); err != nil {
				return noSets(err)
			}
		}
	}
	return nil
}

// triedSets are made to find out whether the kernel has their types.
var triedSets = map[string]string{ipset.HashIPPort: SetProbe, ipset.HashIPPortIP: SetProbe + "-",
	ipset.HashNetIface: SetProbe + "+"}

// noSets returns an error that says what to install.
func noSets(why error) error {
	return fmt.Errorf("%w: the kernel needs ipset (CONFIG_IP_SET, module ip_set), and iptables its match for sets "+
		"(libxt_set, in the package iptables; in some distributions, as kmod-ipt-ipset or iptables-mod-ipset, a package of "+
		"its own): install ipset (%w)", errNoSets, why)
}

// probedSets removes the sets of the trial rules.
func (b *Backend) probedSets() error {
	for _, v6 := range []bool{false, true} {
		for _, name := range triedSets {
			if err := b.Sets.Destroy(SetName(name, v6)); err != nil {
				return err
			}
		}
	}
	if b.Helper.NoSets != "" {
		return noSets(errors.New(b.Helper.NoSets))
	}
	return nil
}

func (b *Backend) Name() string   { return guard.Iptables }
func (b *Backend) Persists() bool { return false }

func (b *Backend) Processes() []guard.Process {
	if b.Helper.trouble() != nil {
		return nil
	}
	return []guard.Process{{Name: HelperName, PID: b.Helper.PID, Privileges: b.Helper.Privileges}}
}

func (b *Backend) Describe() string {
	kind := "nf_tables"
	if b.Helper.Legacy {
		kind = "legacy"
	}
	return fmt.Sprintf("iptables %s (%s) with ipset, chains spa-*, closed=drop", b.Helper.Version, kind)
}

func (b *Backend) Close() error {
	var errs []error
	if b.Helper != nil {
		errs = append(errs, b.Helper.Close())
	}
	if b.Sets != nil {
		errs = append(errs, b.Sets.Close())
	}
	if b.names != nil {
		errs = append(errs, b.names.Close())
	}
	if b.events != nil {
		errs = append(errs, b.events.Close())
	}
	if b.legacy != nil {
		errs = append(errs, b.legacy.Close())
	}
	return errors.Join(errs...)
}

// Load fills the sets before it loads the rules: existing rules continue to match the same sets, each of which
// changes in one step.
func (b *Backend) Load(spec guard.Spec, p guard.Plan) error {
	if err := can(&spec); err != nil {
		return err
	}
	b.Mu.Lock()
	defer b.Mu.Unlock()
	before, trial := b.Spec, b.trial
	b.Spec = spec
	b.NoteEnds(p)
	err := b.Fill(p)
	if err == nil {
		err = b.loadRules()
	}
	if err != nil {
		b.Spec, b.trial = before, trial
		b.doubt() // the sets may already have changed
	}
	return err
}

// doubt makes Watch find that the guard is not as it should be. The caller holds the lock.
func (b *Backend) doubt() {
	if b.digest == "" {
		return // it was not loaded, or Watch already knows
	}
	b.digest = ""
	if b.legacy != nil {
		b.legacy.good = [sha256.Size]byte{}
	}
	b.poke()
}

// NoteEnds records what Watch needs from the plan.
func (b *Backend) NoteEnds(p guard.Plan) {
	b.trial = !p.ConfirmBy.IsZero()
	for _, l := range p.Leases {
		b.lasts(l.Until)
	}
	b.lasts(p.ConfirmBy)
	for _, c := range p.Carried {
		b.lasts(c.Until)
	}
}

func unzoned(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(guard.Normal(a.Addr()), a.Port())
}

// loadRules loads the rules. At the start it waits for the lock of iptables; later callers would have to wait for it
// in turn, so Watch retries instead.
func (b *Backend) loadRules() error {
	r := b.GuardRules()
	b.leads.Store(len(r.Forwards) > 0)
	tries := 1
	if !b.loaded {
		tries = 10
	}
	var answer reply
	var err error
	for range tries {
		answer, err = b.Helper.Ask(Request{Op: OpLoad, Rules: r, Wait: !b.loaded})
		if !errors.Is(err, errBusy) {
			break
		}
	}
	if err != nil {
		return err
	}
	b.loaded, b.fresh, b.digest = true, true, answer.Found.Digest
	return nil
}

// GuardRules returns the settings for the helper.
func (b *Backend) GuardRules() GuardRules {
	r := GuardRules{
		Mark: b.Spec.Mark, Guarded: b.Spec.Guarded, Cut: b.Spec.Cut,
		Knock: b.Spec.Knock, Trusted: b.Spec.Trusted, TPROXY: b.Spec.TPROXY, Trial: b.trial, Nets: b.letsInNetworks(),
		Forwards: b.Spec.Forwards,
	}
	for _, t := range b.Spec.Targets {
		here := guard.Target{Ports: t.Ports}
		for _, a := range t.Addresses {
			here.Addresses = append(here.Addresses, guard.Normal(a))
		}
		r.Targets = append(r.Targets, here)
	}
	return r
}

func (b *Backend) Set(ls []guard.Lease) error { return b.setMembers(ls) }

// Taken returns nothing: see can.
func (b *Backend) Taken() ([]guard.Element, error) { return nil, nil }

func (b *Backend) Carried() ([]guard.Carried, error) { return b.carriedMembers() }

func (b *Backend) Entered() (bool, error) {
	answer, err := b.Helper.Ask(Request{Op: opCount})
	return answer.Entered, err
}

func (b *Backend) Permanent() error {
	b.Mu.Lock()
	defer b.Mu.Unlock()
	trial := b.trial
	b.trial = false
	err := b.loadRules()
	if err != nil {
		b.trial = trial
	}
	return err
}

func (b *Backend) Remove() error {
	b.Mu.Lock()
	defer b.Mu.Unlock()
	var err error
	for range 10 {
		if _, err = b.Helper.Ask(Request{Op: OpRemove, Wait: true}); !errors.Is(err, errBusy) {
			break
		}
	}
	if err != nil {
		return err
	}
	b.loaded, b.trial = false, false
	return b.destroySets()
}

// poke makes Watch check.
func (b *Backend) poke() {
	select {
	case b.poked <- struct{}{}:
	default:
	}
	if b.events != nil {
		b.events.SetReadDeadline(time.Unix(1, 0))
	}
}
