package iptables

import (
	"errors"
	"math"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
)

// AddressSet returns a set whose elements have an address.
func (b *Backend) AddressSet(name, kind string, v6 bool) ipset.Set {
	family := byte(unix.AF_INET)
	if v6 {
		family = unix.AF_INET6
	}
	return ipset.Set{Name: SetName(name, v6), Kind: kind, Family: family, Max: b.Spec.Size + 1}
}

// witness returns the sentinel element: no packet matches it, and it never expires, so while it is there no tool has
// emptied the set. The kernel does not report changes of ipsets.
func witness(kind string, v6 bool) ipset.Member {
	nobody := netip.MustParseAddr("255.255.255.255")
	if v6 {
		nobody = netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	}
	m := ipset.Member{IP: nobody, Proto: service.TCP}
	if kind == ipset.HashIPPortIP || kind == ipset.HashIPPortNet {
		m.IP2 = nobody
	}
	return m
}

// leaseSet is a set that leases are elements of.
type leaseSet struct {
	name, kind string
	v6         bool
}

var leaseSets = []leaseSet{
	{SetGrants, ipset.HashIPPort, false}, {SetGrants, ipset.HashIPPort, true},
	{setReach, ipset.HashIPPortIP, false}, {setReach, ipset.HashIPPortIP, true},
	{setNear, ipset.HashIPPort, true},
	{setLed, ipset.HashIPPort, false}, {setLed, ipset.HashIPPort, true},
	{setLedTo, ipset.HashIPPortIP, false}, {setLedTo, ipset.HashIPPortIP, true},
}

// members returns the leases that belong to the set, as elements.
func (s leaseSet) members(ls []guard.Lease) []ipset.Member {
	var ms []ipset.Member
	for _, l := range ls {
		if setOf(l.Element) != s {
			continue
		}
		if l.Bits != 0 {
			ms = append(ms, networkMember(l))
		} else {
			ms = append(ms, ipset.Member{IP: l.Source, Proto: l.Proto, Port: l.Port, IP2: l.To,
				Seconds: ipset.Seconds(l.Remaining)})
		}
	}
	return ms
}

// setOf returns the set that an element belongs to.
func setOf(e guard.Element) leaseSet {
	switch v6 := e.Source.Is6(); {
	case e.Bits != 0:
		return setOfNetwork(e)
	case e.Link == led && e.To.IsValid():
		return leaseSet{setLedTo, ipset.HashIPPortIP, v6}
	case e.Link == led:
		return leaseSet{setLed, ipset.HashIPPort, v6}
	case e.Link != 0:
		return leaseSet{setNear, ipset.HashIPPort, true}
	case e.To.IsValid():
		return leaseSet{setReach, ipset.HashIPPortIP, v6}
	default:
		return leaseSet{SetGrants, ipset.HashIPPort, v6}
	}
}

// Fill makes the sets match the plan, except those that rules fill.
func (b *Backend) Fill(p guard.Plan) error {
	leases := b.withLed(b.settle(p.At(b.Spec.Now()).Leases))
	for _, s := range b.leaseSets() {
		ms := append(s.members(leases), witness(s.kind, s.v6))
		if err := b.Sets.Replace(b.AddressSet(s.name, s.kind, s.v6), ms); err != nil {
			return err
		}
	}
	if err := b.Sets.Replace(b.AddressSet(setLinks, ipset.HashNetIface, true), b.linkMembers()); err != nil {
		return err
	}
	for _, v6 := range []bool{false, true} {
		p := p.At(b.Spec.Now())
		flows, peers := flowMembers(p.Carried, v6)
		away := b.AddressSet(setAway, ipset.HashNetIface, v6)
		away.Max = min(away.Max, guard.AwaySize)
		if err := errors.Join(
			b.Sets.Replace(b.AddressSet(setFlows, ipset.HashIPPortIP, v6), flows),
			b.Sets.Replace(b.AddressSet(SetPeers, ipset.HashIPPort, v6), peers),
			b.Sets.Keep(b.AddressSet(SetMet, ipset.HashIPPort, v6)),
			b.Sets.Keep(away),
		); err != nil {
			return err
		}
	}
	if err := b.Sets.Keep(b.AddressSet(setLinked, ipset.HashNetIface, true)); err != nil {
		return err
	}
	return b.fillTrial(p.At(b.Spec.Now()).Confirm)
}

// fillTrial makes the sets that hold the guarded ports while the guard is on trial.
func (b *Backend) fillTrial(confirm time.Duration) error {
	if confirm <= 0 {
		return nil
	}
	for _, proto := range []service.Proto{service.TCP, service.UDP} {
		var ms []ipset.Member
		all := ledger.Holding{Ports: b.Spec.EveryPort()}
		all.Each(func(e guard.Element) {
			if e.Proto == proto {
				ms = append(ms, ipset.Member{Port: e.Port, Seconds: ipset.Seconds(confirm)})
			}
		})
		low, high := span(b.Spec.EveryPort(), proto)
		if err := b.Sets.Replace(ipset.Set{Name: trialSet(proto), Kind: ipset.BitmapPort, Low: low, High: high},
			ms); err != nil {
			return err
		}
	}
	return nil
}

// span returns the lowest and the highest port of a protocol.
func span(ports []service.Ports, proto service.Proto) (low, high uint16) {
	low = math.MaxUint16
	for _, p := range ports {
		if p.Proto == proto {
			low, high = min(low, p.Low), max(high, p.High)
		}
	}
	return min(low, high), high
}

// flowMembers spreads flows over two sets, because no type of set has two ports. An element that several flows share
// lasts as long as the longest of them.
func flowMembers(fs []guard.Carried, v6 bool) (flows, peers []ipset.Member) {
	in, at := make(map[ipset.Member]uint32), make(map[ipset.Member]uint32)
	for _, f := range fs {
		remote, local := unzoned(f.Remote), unzoned(f.Local)
		if remote.Addr().Is6() != v6 {
			continue
		}
		one, other := ipset.Member{IP: remote.Addr(), Proto: f.Proto, Port: remote.Port(), IP2: local.Addr()},
			ipset.Member{IP: remote.Addr(), Proto: f.Proto, Port: local.Port()}
		in[one], at[other] = max(in[one], ipset.Seconds(f.Remaining)), max(at[other], ipset.Seconds(f.Remaining))
	}
	return lasting(in), lasting(at)
}

// lasting returns members with these timeouts in seconds.
func lasting(times map[ipset.Member]uint32) (ms []ipset.Member) {
	for m, s := range times {
		m.Seconds = s
		ms = append(ms, m)
	}
	return ms
}

// carriedMembers rebuilds flows from the two sets. For an address with flows to several ports it may return more
// flows than there were, but they come from the same elements.
func (b *Backend) carriedMembers() ([]guard.Carried, error) {
	var all []guard.Carried
	for _, v6 := range []bool{false, true} {
		flows, err := b.Sets.List(SetName(setFlows, v6))
		if errors.Is(err, guard.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		peers, err := b.Sets.List(SetName(SetPeers, v6))
		if err != nil && !errors.Is(err, guard.ErrGone) {
			return nil, err
		}
		for _, f := range flows {
			for _, p := range peers {
				if p.IP == f.IP && p.Proto == f.Proto {
					l := guard.Flow{Proto: f.Proto, Remote: netip.AddrPortFrom(f.IP, f.Port), Local: netip.AddrPortFrom(f.IP2, p.Port)}
					all = append(all, guard.Carried{Flow: l, Remaining: time.Duration(min(f.Seconds, p.Seconds)) * time.Second})
				}
			}
		}
	}
	return all, nil
}

// surely is how much time an element must have left to be in its set still, which counts whole seconds.
const surely = 2 * time.Second

// setMembers changes grants. It deletes ended ones first, which cannot fail for lack of room; then it adds new ones,
// which a full set may refuse, whereupon all are deleted again; then it prolongs existing ones. Of those that may have
// ended just now, it learns from the kernel which are new, at twice the cost.
func (b *Backend) setMembers(ls []guard.Lease) error {
	now := b.Spec.Now()
	ls = guard.Timed(ls, now)
	if err := b.lacks(ls); err != nil {
		return err
	}
	for _, l := range ls {
		b.lasts(l.Until)
	}
	undo, err := b.meet(ls)
	if err != nil {
		return err
	}
	var gone, prolonged, live []guard.Lease
	for _, l := range b.withLed(ls) {
		switch {
		case l.Remaining <= 0:
			gone = append(gone, l)
		case !l.Fresh() && guard.Remaining(l.Was, now) > surely:
			prolonged = append(prolonged, l)
		default:
			live = append(live, l)
		}
	}
	for _, s := range b.leaseSets() {
		if err := b.all(ipset.CmdDel, s, s.members(gone)); err != nil {
			return err
		}
	}
	added, there := make(map[leaseSet][]ipset.Member), make(map[leaseSet][]ipset.Member)
	for _, s := range b.leaseSets() {
		added[s], there[s], err = b.addFresh(s, s.members(live))
		if err != nil {
			return errors.Join(err, undo(), b.each(ipset.CmdDel, added))
		}
		there[s] = append(there[s], s.members(prolonged)...)
	}
	return b.each(ipset.CmdAdd, there)
}

// addFresh adds the members that are not in the set yet, and returns them and the others.
func (b *Backend) addFresh(s leaseSet, ms []ipset.Member) (fresh, there []ipset.Member, err error) {
	if len(ms) == 0 {
		return nil, nil, nil
	}
	name := SetName(s.name, s.v6)
	errs, err := b.Sets.Each(ipset.CmdAdd, netlink.Excl, name, ms)
	if err != nil {
		return nil, nil, err
	}
	for i, m := range ms {
		switch errno, no := errs[i]; {
		case !no:
			fresh = append(fresh, m)
		case errno == ipset.ErrExists:
			there = append(there, m)
		default:
			err = ipset.Explain("granting in "+name, errno)
		}
	}
	return fresh, there, err
}

func (b *Backend) each(cmd uint16, ms map[leaseSet][]ipset.Member) error {
	var errs []error
	for _, s := range b.leaseSets() {
		errs = append(errs, b.all(cmd, s, ms[s]))
	}
	return errors.Join(errs...)
}

func (b *Backend) all(cmd uint16, s leaseSet, ms []ipset.Member) error {
	if len(ms) == 0 {
		return nil
	}
	name := SetName(s.name, s.v6)
	errs, err := b.Sets.Each(cmd, 0, name, ms)
	if err != nil {
		return err
	}
	for _, errno := range errs {
		return ipset.Explain("changing "+name, errno)
	}
	return nil
}

// emptied reports whether another tool has emptied or removed a set of grants.
func (b *Backend) emptied() (bool, error) {
	for _, s := range b.leaseSets() {
		there, err := b.Sets.Has(SetName(s.name, s.v6), witness(s.kind, s.v6))
		if err != nil || !there {
			return err == nil, err
		}
	}
	return false, nil
}

func (b *Backend) destroySets() error {
	if b.Sets == nil {
		return nil
	}
	return b.Sets.Destroy(OurSets()...)
}

// OurSets returns the names of all sets that we ever make, including temporary ones.
func OurSets() []string {
	var names []string
	for _, v6 := range []bool{false, true} {
		for _, name := range []string{SetGrants, setReach, setNets, setNetsAt, setNear, setLinks, SetMet, setLinked, setAway,
			setLed, setLedTo, setFlows, SetPeers} {
			names = append(names, SetName(name, v6), SetName(name, v6)+ipset.Fresh)
		}
		for _, name := range triedSets {
			names = append(names, SetName(name, v6))
		}
	}
	for _, proto := range []service.Proto{service.TCP, service.UDP} {
		names = append(names, trialSet(proto), trialSet(proto)+ipset.Fresh)
	}
	return names
}

// lasts records when something in the sets ends.
func (b *Backend) lasts(until time.Time) {
	b.span.Lock()
	defer b.span.Unlock()
	b.until = ledger.Later(b.until, until)
}

// lasting returns when the last thing in the sets ends.
func (b *Backend) lasting() time.Time {
	b.span.Lock()
	defer b.span.Unlock()
	return b.until
}
