package firewall

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/nl"
)

// Names of sets, before the family.
const (
	setGrants = "spa-grants" // source and port, at this host
	setReach  = "spa-reach"  // source, port and destination, at targets
	setNear   = "spa-near"   // link-local source and port,
	setLinks  = "spa-links"  // and its interface
	setMet    = "spa-met"    // source and port that a grant has admitted; rules fill it
	setLinked = "spa-linked" // link-local source that was admitted, and its interface; likewise
	setFlows  = "spa-flows"  // carried flows: remote address and port, own address
	setPeers  = "spa-peers"  // carried flows: remote address, own port
	setProbe  = "spa-probe"
)

var (
	// errBusy is returned where another program holds the lock of iptables.
	errBusy = errors.New("another program holds the lock of iptables")

	// errNoSets is returned where there is no ipset: its kernel part, or what rules ask it with.
	errNoSets = errors.New("iptables cannot guard without ipset, whose elements the kernel ends on time")
)

// foreignError says what of our name is not ours. It is ErrForeign.
type foreignError string

func (e foreignError) Error() string        { return "" + string(e) }
func (e foreignError) Is(target error) bool { return target == guard.ErrForeign }

// ipt keeps the guard by the program iptables, which its helper runs. Grants are elements of
// ipsets, for which no program is needed.
type ipt struct {
	spec   guard.Spec
	log    *slog.Logger
	helper *helper
	sets   *ipset.Conn
	names  *netlink.Conn            // of interfaces
	near   map[netip.Addr]*neighbor // link-local sources that have grants
	events *netlink.Conn            // what others change; nil for the older kind
	legacy *legacyTables            // the same for the older kind; nil for the newer

	poked chan struct{} // watch has to look

	mu     sync.Mutex // guards what follows, and that nobody looks at half a guard
	loaded bool       // by this process
	fresh  bool       // and not looked at since
	digest string     // of what was loaded
	trial  bool       // the guarded ports are elements that end by themselves

	span  sync.Mutex // guards what follows; a grant must not wait for who looks at the guard
	until time.Time  // the last end of anything that sets hold
}

var _ guard.Backend = (*ipt)(nil)

func newIptables(c guard.Spec, log *slog.Logger) (guard.Backend, error) {
	if err := iptablesCan(&c); err != nil {
		return nil, err
	}
	b := &ipt{spec: c, log: log, poked: make(chan struct{}, 1), near: make(map[netip.Addr]*neighbor)}
	if err := b.open(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// iptablesCan refuses what the configuration wants and iptables cannot do.
func iptablesCan(c *guard.Spec) error {
	if c.Closed == guard.Reject {
		return errors.New(`iptables can only drop where the guard stands, not reject: set closed = "drop", or use nftables`)
	}
	if c.Mode != guard.ModeGuard {
		return errors.New(`mode "admit" needs nftables, whose sets it fills`)
	}
	for _, name := range c.Trusted {
		if err := checkInterface(name); err != nil {
			return err
		}
	}
	return nil
}

func (b *ipt) open() error {
	if err := b.openSets(); err != nil {
		return err
	}
	var err error
	if b.names, err = netlink.Dial(unix.NETLINK_ROUTE, nil); err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	if b.helper, err = startHelper(b.spec.Programs, "", b.spec.Lock); err != nil {
		return err
	}
	if err := b.probedSets(); err != nil {
		return err
	}
	if b.helper.Legacy {
		b.legacy, err = openLegacyTables(b.helper.NoIPv6)
	} else {
		b.events, err = nl.Changes(0)
	}
	if err != nil {
		return fmt.Errorf("listening for changes of the rules: %w", err)
	}
	return nil
}

// openSets opens the sets and makes those that the helper tries its rules with.
func (b *ipt) openSets() error {
	sets, err := ipset.Open()
	if errors.Is(err, unix.EPERM) {
		return err
	}
	if err != nil {
		return noSets(err)
	}
	b.sets = sets
	for _, v6 := range []bool{false, true} {
		for kind, name := range triedSets {
			if err := sets.Create(b.addressSet(name, kind, v6)); err != nil {
				return noSets(err)
			}
		}
	}
	return nil
}

// triedSets are sets that are made to see whether the kernel has their types.
var triedSets = map[string]string{ipset.HashIPPort: setProbe, ipset.HashIPPortIP: setProbe + "-", ipset.HashNetIface: setProbe + "+"}

// noSets says what there is to install.
func noSets(why error) error {
	return fmt.Errorf("%w: the kernel needs ipset (CONFIG_IP_SET, module ip_set), and iptables its match for sets "+
		"(libxt_set, in the package iptables; in some distributions, as kmod-ipt-ipset or iptables-mod-ipset, a package of "+
		"its own): install ipset (%w)", errNoSets, why)
}

// probedSets removes the sets that rules were tried with.
func (b *ipt) probedSets() error {
	for _, v6 := range []bool{false, true} {
		for _, name := range triedSets {
			if err := b.sets.Destroy(setName(name, v6)); err != nil {
				return err
			}
		}
	}
	if b.helper.NoSets != "" {
		return noSets(errors.New(b.helper.NoSets))
	}
	return nil
}

func (b *ipt) Name() string   { return guard.Iptables }
func (b *ipt) Persists() bool { return false }

func (b *ipt) Processes() []guard.Process {
	if b.helper.trouble() != nil {
		return nil
	}
	return []guard.Process{{Name: helperName, PID: b.helper.pid, Left: b.helper.Left}}
}

func (b *ipt) Describe() string {
	kind := "nf_tables"
	if b.helper.Legacy {
		kind = "legacy"
	}
	return fmt.Sprintf("iptables %s (%s) with ipset, chains spa-*, closed=drop", b.helper.Version, kind)
}

func (b *ipt) Close() error {
	var errs []error
	if b.helper != nil {
		errs = append(errs, b.helper.close())
	}
	if b.sets != nil {
		errs = append(errs, b.sets.Close())
	}
	if b.names != nil {
		errs = append(errs, b.names.Close())
	}
	if b.events != nil {
		errs = append(errs, b.events.Close())
	}
	if b.legacy != nil {
		errs = append(errs, b.legacy.close())
	}
	return errors.Join(errs...)
}

// load fills the sets first and loads the rules then: rules that are there already go on to
// ask the same sets, whose contents change at one instant each.
func (b *ipt) Load(spec guard.Spec, p guard.Plan) error {
	if err := iptablesCan(&spec); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before, trial := b.spec, b.trial
	b.spec = spec
	b.noteEnds(p)
	err := b.fill(p)
	if err == nil {
		err = b.loadRules()
	}
	if err != nil {
		b.spec, b.trial = before, trial
		b.doubt() // sets are as they were to be
	}
	return err
}

// doubt makes watch find that the guard is not as it should be. The caller holds the lock.
func (b *ipt) doubt() {
	if b.digest == "" {
		return // it was not loaded, or has found that already
	}
	b.digest = ""
	if b.legacy != nil {
		b.legacy.good = [sha256.Size]byte{}
	}
	b.poke()
}

// noteEnds keeps what watch has to know of the plan.
func (b *ipt) noteEnds(p guard.Plan) {
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

// loadRules puts the rules there. At the start it waits for who holds the lock; later others
// would wait for it, so it is tried again by Watch.
func (b *ipt) loadRules() error {
	r := b.guardRules()
	tries := 1
	if !b.loaded {
		tries = 10
	}
	var answer reply
	var err error
	for range tries {
		answer, err = b.helper.ask(request{Op: opLoad, Rules: r, Wait: !b.loaded})
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

func (b *ipt) guardRules() guardRules {
	r := guardRules{
		Mark: b.spec.Mark, Guarded: b.spec.Guarded, Cut: b.spec.Cut,
		Knock: b.spec.Knock, Trusted: b.spec.Trusted, TPROXY: b.spec.TPROXY, Trial: b.trial,
	}
	for _, t := range b.spec.Targets {
		here := guard.Target{Ports: t.Ports}
		for _, a := range t.Addresses {
			here.Addresses = append(here.Addresses, guard.Normal(a))
		}
		r.Targets = append(r.Targets, here)
	}
	return r
}

func (b *ipt) Set(ls []guard.Lease) error { return b.setMembers(ls) }

func (b *ipt) Carried() ([]guard.Carried, error) { return b.carriedMembers() }

func (b *ipt) Entered() (bool, error) {
	answer, err := b.helper.ask(request{Op: opCount})
	return answer.Entered, err
}

func (b *ipt) Permanent() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	trial := b.trial
	b.trial = false
	err := b.loadRules()
	if err != nil {
		b.trial = trial
	}
	return err
}

func (b *ipt) Remove() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var err error
	for range 10 {
		if _, err = b.helper.ask(request{Op: opRemove, Wait: true}); !errors.Is(err, errBusy) {
			break
		}
	}
	if err != nil {
		return err
	}
	b.loaded, b.trial = false, false
	return b.destroySets()
}

// poke makes watch look.
func (b *ipt) poke() {
	select {
	case b.poked <- struct{}{}:
	default:
	}
	if b.events != nil {
		b.events.SetReadDeadline(time.Unix(1, 0))
	}
}
