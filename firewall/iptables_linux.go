package firewall

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Names of sets, before the family.
const (
	setGrants = "spa-grants"
	setFlows  = "spa-flows" // carried flows: remote address and port, own address
	setPeers  = "spa-peers" // carried flows: remote address, own port
	setProbe  = "spa-probe"
)

// maxRules bounds the grants of a guard without sets, whose rules are looked at one by one.
const maxRules = 4096

var (
	// errBusy is returned where another program holds the lock of iptables.
	errBusy = errors.New("firewall: another program holds the lock of iptables")

	errForeignSet = errors.New(`there is an ipset named "spa-..." that is not ours; rename it, or remove it with: ipset destroy`)
)

// foreignError says what of our name is not ours. It is ErrForeign.
type foreignError string

func (e foreignError) Error() string        { return "firewall: " + string(e) }
func (e foreignError) Is(target error) bool { return target == ErrForeign }

// ipt keeps the guard by the program iptables, which its helper runs. Grants are elements of
// ipsets, for which no program is needed; without ipset they are rules that know their end.
type ipt struct {
	cfg    *Config
	log    *slog.Logger
	helper *helper
	sets   *ipsets       // nil: without
	noSets string        // why
	events *netlink.Conn // what others change; nil for the older kind
	legacy *legacyTables // the same for the older kind; nil for the newer

	poked chan struct{} // watch has to look

	mu     sync.Mutex // guards what follows, and that nobody looks at half a guard
	loaded bool       // by this process
	fresh  bool       // and not looked at since
	digest string     // of what was loaded
	rules  int        // for grants
	trial  time.Time  // the guard goes by itself; zero: it does not
	ends   map[element]time.Time
	flows  []timedFlow
	carry  time.Time
	late   bool // a goroutine waits for the lock with grants
	over   bool // closed
	wait   sync.WaitGroup

	span  sync.Mutex // guards what follows; a grant must not wait for who looks at the guard
	until time.Time  // the last end of anything that sets hold
}

var _ backend = (*ipt)(nil)

func newIptables(c *Config, log *slog.Logger) (backend, error) {
	if err := iptablesCan(c); err != nil {
		return nil, err
	}
	b := &ipt{cfg: c, log: log, poked: make(chan struct{}, 1), ends: make(map[element]time.Time)}
	if err := b.open(); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// iptablesCan refuses what the configuration wants and iptables cannot do.
func iptablesCan(c *Config) error {
	if c.Closed == Reject {
		return errors.New(`firewall: iptables can only drop where the guard stands, not reject: set closed = "drop", or use nftables`)
	}
	if c.Mode != Guard {
		return errors.New(`firewall: mode "admit" needs nftables, whose sets it fills`)
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
	if b.helper, err = startHelper(b.cfg.programs, "", b.cfg.lock); err != nil {
		return err
	}
	if b.sets != nil {
		err = b.probedSets()
	}
	if err != nil {
		return err
	}
	if b.sets == nil && b.helper.NoTime != "" {
		return fmt.Errorf("firewall: iptables cannot guard: it has no ipset (%s), and no rules that end by themselves (%s)", b.noSets, b.helper.NoTime)
	}
	if b.helper.Legacy {
		b.legacy, err = openLegacyTables(b.helper.NoIPv6)
	} else {
		b.events, err = monitor(0)
	}
	if err != nil {
		return fmt.Errorf("firewall: listening for changes of the rules: %w", err)
	}
	return nil
}

// openSets opens the sets and makes those that the helper tries its rules with.
func (b *ipt) openSets() error {
	if b.cfg.noSets {
		b.noSets = "not wanted"
		return nil
	}
	sets, err := openIPSets()
	if errors.Is(err, unix.EPERM) {
		return err
	}
	if err != nil {
		b.noSets = err.Error()
		return nil
	}
	b.sets = sets
	for _, v6 := range []bool{false, true} {
		for _, set := range []ipset{b.addressSet(setProbe, hashIPPort, v6), b.addressSet(setProbe+"-", hashIPPortIP, v6)} {
			if err := sets.create(set); err != nil {
				b.noSets = err.Error()
			}
		}
	}
	if b.noSets != "" {
		return b.dropSets()
	}
	return nil
}

// probedSets forgets the sets where rules cannot ask them.
func (b *ipt) probedSets() error {
	for _, v6 := range []bool{false, true} {
		for _, name := range []string{setProbe, setProbe + "-"} {
			if err := b.sets.destroy(setName(name, v6)); err != nil {
				return err
			}
		}
	}
	if b.helper.NoSets != "" {
		b.noSets = b.helper.NoSets
		return b.dropSets()
	}
	return nil
}

func (b *ipt) dropSets() error {
	err := b.sets.close()
	b.sets = nil
	return err
}

func (b *ipt) name() string   { return BackendIptables }
func (b *ipt) persists() bool { return false }

func (b *ipt) describe() string {
	kind := "nf_tables"
	if b.helper.Legacy {
		kind = "legacy"
	}
	s := fmt.Sprintf("iptables %s (%s) guards, dropping strangers' packets, ", b.helper.Version, kind)
	if b.sets != nil {
		return s + "with ipset"
	}
	return s + "without ipset, which is weaker: grants end by the wall clock, and one that is set back prolongs them (" + b.noSets + ")"
}

func (b *ipt) close() error {
	b.mu.Lock()
	b.over = true
	b.mu.Unlock()
	b.wait.Wait()
	var errs []error
	if b.helper != nil {
		errs = append(errs, b.helper.close())
	}
	if b.sets != nil {
		errs = append(errs, b.sets.close())
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
func (b *ipt) load(p plan) error {
	if err := iptablesCan(b.cfg); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	was := *b.contents()
	b.take(p, now)
	err := b.fill(p)
	if err == nil {
		err = b.loadRules(now)
	}
	if err != nil {
		b.restoreContents(was)
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

// contents is what load replaces.
type contents struct {
	trial, carry time.Time
	ends         map[element]time.Time
	flows        []timedFlow
}

func (b *ipt) contents() *contents {
	return &contents{b.trial, b.carry, b.ends, b.flows}
}

func (b *ipt) restoreContents(c contents) {
	b.trial, b.carry, b.ends, b.flows = c.trial, c.carry, c.ends, c.flows
}

// take makes the contents those of the plan.
func (b *ipt) take(p plan, now time.Time) {
	b.trial, b.carry, b.flows = time.Time{}, time.Time{}, nil
	b.ends = make(map[element]time.Time, len(p.leases))
	for _, l := range p.leases {
		b.ends[l.element] = now.Add(l.left)
		b.lasts(now.Add(l.left))
	}
	if p.confirm > 0 {
		b.trial = now.Add(p.confirm)
		b.lasts(b.trial)
	}
	if len(p.carried) == 0 {
		return
	}
	b.carry = now.Add(p.carry)
	b.lasts(b.carry)
	for _, f := range p.carried {
		b.flows = append(b.flows, timedFlow{f.proto, unzoned(f.remote), unzoned(f.local)})
	}
}

func unzoned(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(normal(a.Addr()), a.Port()) }

// loadRules puts the rules there. At the start it waits for who holds the lock; later others
// would wait for it, so it is tried again by Watch.
func (b *ipt) loadRules(now time.Time) error {
	if b.sets == nil && len(b.ends) > maxRules {
		return fmt.Errorf("%w: without ipset there is room for %d", ErrFull, maxRules)
	}
	r := b.guardRules(now)
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
	b.loaded, b.fresh, b.digest, b.rules = true, true, answer.Found.Digest, answer.Found.Grants
	return nil
}

func (b *ipt) guardRules(now time.Time) guardRules {
	r := guardRules{
		Sets: b.sets != nil, Mark: b.cfg.Mark, Guarded: b.cfg.Guarded, Cut: b.cfg.Cut,
		Knock: b.cfg.Knock, Trusted: b.cfg.Trusted,
		Trial: !b.trial.IsZero(), TrialEnd: b.trial, Now: now,
	}
	for _, t := range b.cfg.Targets {
		for _, a := range t.Addresses {
			r.Addresses = append(r.Addresses, normal(a))
		}
	}
	if b.sets != nil {
		return r
	}
	r.Flows, r.FlowsEnd = b.flows, b.carry
	for e, end := range b.ends {
		r.Grants = append(r.Grants, timedGrant{e.source, e.proto, e.port, end})
	}
	return r
}

func (b *ipt) set(ls []lease) error {
	if b.sets != nil {
		return b.setMembers(ls)
	}
	return b.setRules(ls)
}

// carried is what the guard in place carries: as its sets have it, or its rules.
func (b *ipt) carried() ([]flow, time.Duration, error) {
	if b.sets != nil {
		return b.carriedMembers()
	}
	answer, err := b.helper.ask(request{Op: opLook})
	if err != nil {
		return nil, 0, err
	}
	left := time.Until(answer.Found.FlowsEnd)
	if left <= 0 {
		return nil, 0, nil
	}
	var flows []flow
	for _, f := range answer.Found.Flows {
		flows = append(flows, flow{f.Proto, f.Remote, f.Local})
	}
	return flows, left, nil
}

func (b *ipt) confirmed() (bool, error) {
	answer, err := b.helper.ask(request{Op: opCount})
	return answer.Entered, err
}

func (b *ipt) permanent() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	trial := b.trial
	b.trial = time.Time{}
	err := b.loadRules(time.Now())
	if err != nil {
		b.trial = trial
	}
	return err
}

func (b *ipt) remove() error {
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
	b.restoreContents(contents{ends: make(map[element]time.Time)})
	b.loaded = false
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

// setRules changes the rules for grants, where there are no sets. While another program
// holds the lock of iptables nobody is kept waiting: what is to change is changed as soon as
// the lock is free.
func (b *ipt) setRules(ls []lease) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	was, next := b.ends, make(map[element]time.Time, len(b.ends)+len(ls))
	for e, end := range b.ends {
		if end.After(now) {
			next[e] = end
		}
	}
	for _, l := range ls {
		delete(next, l.element)
		if l.left > 0 {
			next[l.element] = now.Add(l.left)
		}
	}
	if len(next) > max(len(was), min(maxRules, int(b.cfg.size))) {
		return fmt.Errorf("%w: without ipset there is room for %d", ErrFull, min(maxRules, int(b.cfg.size)))
	}
	b.ends = next
	if b.late {
		return nil
	}
	err := b.regrant()
	switch {
	case errors.Is(err, errBusy):
		b.late = true
		b.wait.Go(b.regrantSometime)
		return nil
	case err != nil:
		b.ends = was
		return errors.Join(err, b.regrant())
	}
	return nil
}

// regrant makes the rules for grants what they should be.
func (b *ipt) regrant() error {
	r := b.guardRules(time.Now())
	if _, err := b.helper.ask(request{Op: opGrants, Rules: r}); err != nil {
		return err
	}
	b.rules = 0
	for _, v6 := range b.helper.families() {
		s := r.script(v6)
		for _, chain := range grantChains() {
			b.rules += len(s.lines[chain])
		}
	}
	return nil
}

// regrantSometime waits for the lock.
func (b *ipt) regrantSometime() {
	b.log.Warn("another program holds the lock of iptables; grants are put in place when it lets go")
	for {
		if !rest(context.Background(), 20*time.Millisecond) {
			return
		}
		if done := b.regrantNow(); done {
			return
		}
	}
}

func (b *ipt) regrantNow() (done bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return true
	}
	err := b.regrant()
	if errors.Is(err, errBusy) {
		return false
	}
	b.late = false
	if err != nil {
		b.log.Error("grants could not be put in place; the guard is loaded anew", "error", err)
		b.doubt()
	}
	return true
}
