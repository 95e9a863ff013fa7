package firewall

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
)

// addressSet is a set whose elements have an address.
func (b *ipt) addressSet(name, kind string, v6 bool) ipset {
	family := byte(unix.AF_INET)
	if v6 {
		family = unix.AF_INET6
	}
	return ipset{name: setName(name, v6), kind: kind, family: family, max: b.cfg.size + 1}
}

// witness is an element that no packet is, and that stays: while it is there, nobody has
// emptied the set. ipset tells nobody of changes.
func witness(kind string, v6 bool) member {
	nobody := netip.MustParseAddr("255.255.255.255")
	if v6 {
		nobody = netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	}
	m := member{ip: nobody, proto: service.TCP}
	if kind == hashIPPortIP {
		m.ip2 = nobody
	}
	return m
}

// leaseSet is a set that leases are elements of.
type leaseSet struct {
	name, kind string
	v6         bool
}

var leaseSets = []leaseSet{
	{setGrants, hashIPPort, false}, {setGrants, hashIPPort, true},
	{setReach, hashIPPortIP, false}, {setReach, hashIPPortIP, true},
	{setNear, hashIPPort, true},
}

// members are those of the leases that belong into the set.
func (s leaseSet) members(ls []guard.Lease) []member {
	var ms []member
	for _, l := range ls {
		if setOf(l.Element) == s {
			ms = append(ms, member{ip: l.Source, proto: l.Proto, port: l.Port, ip2: l.To, seconds: seconds(l.Left)})
		}
	}
	return ms
}

// setOf is the set that an element belongs into.
func setOf(e guard.Element) leaseSet {
	switch v6 := e.Source.Is6(); {
	case e.Link != 0:
		return leaseSet{setNear, hashIPPort, true}
	case e.To.IsValid():
		return leaseSet{setReach, hashIPPortIP, v6}
	default:
		return leaseSet{setGrants, hashIPPort, v6}
	}
}

// fill makes the sets what the plan says, but for what rules have learned.
func (b *ipt) fill(p guard.Plan) error {
	leases := b.settle(p.At(b.cfg.Now()).Leases)
	for _, s := range leaseSets {
		ms := append(s.members(leases), witness(s.kind, s.v6))
		if err := b.sets.replace(b.addressSet(s.name, s.kind, s.v6), ms); err != nil {
			return err
		}
	}
	if err := b.sets.replace(b.addressSet(setLinks, hashNetIface, true), b.linkMembers()); err != nil {
		return err
	}
	for _, v6 := range []bool{false, true} {
		p := p.At(b.cfg.Now())
		flows, peers := flowMembers(p.Carried, v6)
		if err := errors.Join(
			b.sets.replace(b.addressSet(setFlows, hashIPPortIP, v6), flows),
			b.sets.replace(b.addressSet(setPeers, hashIPPort, v6), peers),
			b.sets.keep(b.addressSet(setMet, hashIPPort, v6)),
		); err != nil {
			return err
		}
	}
	if err := b.sets.keep(b.addressSet(setLinked, hashNetIface, true)); err != nil {
		return err
	}
	return b.fillTrial(p.At(b.cfg.Now()).Confirm)
}

// fillTrial makes the sets that hold the guarded ports while the guard is on trial.
func (b *ipt) fillTrial(confirm time.Duration) error {
	if confirm <= 0 {
		return nil
	}
	for _, proto := range []service.Proto{service.TCP, service.UDP} {
		var ms []member
		for _, e := range portElements(b.cfg.everyPort(), 0) {
			if service.Proto(e.Key[0]) == proto {
				ms = append(ms, member{port: uint16(e.Key[4])<<8 | uint16(e.Key[5]), seconds: seconds(confirm)})
			}
		}
		low, high := span(b.cfg.everyPort(), proto)
		if err := b.sets.replace(ipset{name: trialSet(proto), kind: bitmapPort, low: low, high: high}, ms); err != nil {
			return err
		}
	}
	return nil
}

// span is the ports from the lowest to the highest of a protocol.
func span(ports []service.Ports, proto service.Proto) (low, high uint16) {
	low = math.MaxUint16
	for _, p := range ports {
		if p.Proto == proto {
			low, high = min(low, p.Low), max(high, p.High)
		}
	}
	return min(low, high), high
}

// flowMembers spreads flows over two sets, since no type of set has two ports. What several have in common
// stays for the longest of them.
func flowMembers(fs []guard.Carried, v6 bool) (flows, peers []member) {
	in, at := make(map[member]uint32), make(map[member]uint32)
	for _, f := range fs {
		remote, local := unzoned(f.Remote), unzoned(f.Local)
		if remote.Addr().Is6() != v6 {
			continue
		}
		one, other := member{ip: remote.Addr(), proto: f.Proto, port: remote.Port(), ip2: local.Addr()},
			member{ip: remote.Addr(), proto: f.Proto, port: local.Port()}
		in[one], at[other] = max(in[one], seconds(f.Left)), max(at[other], seconds(f.Left))
	}
	return lasting(in), lasting(at)
}

// lasting are members that stay for so many seconds.
func lasting(times map[member]uint32) (ms []member) {
	for m, s := range times {
		m.seconds = s
		ms = append(ms, m)
	}
	return ms
}

// carriedMembers puts flows together again. Where an address has flows to several ports they
// may come to be more, which go to the same elements.
func (b *ipt) carriedMembers() ([]guard.Carried, error) {
	var all []guard.Carried
	for _, v6 := range []bool{false, true} {
		flows, err := b.sets.list(setName(setFlows, v6))
		if errors.Is(err, guard.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		peers, err := b.sets.list(setName(setPeers, v6))
		if err != nil && !errors.Is(err, guard.ErrGone) {
			return nil, err
		}
		for _, f := range flows {
			for _, p := range peers {
				if p.ip == f.ip && p.proto == f.proto {
					l := guard.Flow{Proto: f.proto, Remote: netip.AddrPortFrom(f.ip, f.port), Local: netip.AddrPortFrom(f.ip2, p.port)}
					all = append(all, guard.Carried{Flow: l, Left: time.Duration(min(f.seconds, p.seconds)) * time.Second})
				}
			}
		}
	}
	return all, nil
}

// setMembers changes grants: those that end first, for nothing can keep them from it; then
// those that are new, which a full set may refuse, and then all are taken back; then those
// that were there.
func (b *ipt) setMembers(ls []guard.Lease) error {
	ls = guard.Timed(ls, b.cfg.Now())
	for _, l := range ls {
		b.lasts(l.Until)
	}
	undo, err := b.meet(ls)
	if err != nil {
		return err
	}
	gone := slices.DeleteFunc(slices.Clone(ls), func(l guard.Lease) bool { return l.Left > 0 })
	live := slices.DeleteFunc(slices.Clone(ls), func(l guard.Lease) bool { return l.Left <= 0 })
	for _, s := range leaseSets {
		if err := b.all(ipsetCmdDel, s, s.members(gone)); err != nil {
			return err
		}
	}
	added, there := make(map[leaseSet][]member), make(map[leaseSet][]member)
	for _, s := range leaseSets {
		added[s], there[s], err = b.addFresh(s, s.members(live))
		if err != nil {
			return errors.Join(err, undo(), b.each(ipsetCmdDel, added))
		}
	}
	return b.each(ipsetCmdAdd, there)
}

// addFresh adds the members that the set does not have yet, and returns them and the others.
func (b *ipt) addFresh(s leaseSet, ms []member) (fresh, there []member, err error) {
	if len(ms) == 0 {
		return nil, nil, nil
	}
	name := setName(s.name, s.v6)
	errs, err := b.sets.each(ipsetCmdAdd, netlink.Excl, name, ms)
	if err != nil {
		return nil, nil, err
	}
	for i, m := range ms {
		switch errno, no := errs[i]; {
		case !no:
			fresh = append(fresh, m)
		case errno == ipsetErrExists:
			there = append(there, m)
		default:
			err = explainIPSet("granting in "+name, errno)
		}
	}
	return fresh, there, err
}

func (b *ipt) each(cmd uint16, ms map[leaseSet][]member) error {
	var errs []error
	for _, s := range leaseSets {
		errs = append(errs, b.all(cmd, s, ms[s]))
	}
	return errors.Join(errs...)
}

func (b *ipt) all(cmd uint16, s leaseSet, ms []member) error {
	if len(ms) == 0 {
		return nil
	}
	name := setName(s.name, s.v6)
	errs, err := b.sets.each(cmd, 0, name, ms)
	if err != nil {
		return err
	}
	for _, errno := range errs {
		return explainIPSet("changing "+name, errno)
	}
	return nil
}

// emptied reports whether somebody else has emptied or removed a set of grants.
func (b *ipt) emptied() (bool, error) {
	for _, s := range leaseSets {
		there, err := b.sets.has(setName(s.name, s.v6), witness(s.kind, s.v6))
		if err != nil || !there {
			return err == nil, err
		}
	}
	return false, nil
}

func (b *ipt) destroySets() error {
	if b.sets == nil {
		return nil
	}
	return b.sets.destroy(ourSets()...)
}

// ourSets are the names of all sets that are ever made, those for a moment included.
func ourSets() []string {
	var names []string
	for _, v6 := range []bool{false, true} {
		for _, name := range []string{setGrants, setReach, setNear, setLinks, setMet, setLinked, setFlows, setPeers} {
			names = append(names, setName(name, v6), setName(name, v6)+fresh)
		}
		for _, name := range triedSets {
			names = append(names, setName(name, v6))
		}
	}
	for _, proto := range []service.Proto{service.TCP, service.UDP} {
		names = append(names, trialSet(proto), trialSet(proto)+fresh)
	}
	return names
}

// lasts notes when something in the sets ends.
func (b *ipt) lasts(until time.Time) {
	b.span.Lock()
	defer b.span.Unlock()
	b.until = ledger.Later(b.until, until)
}

// lasting is when the last thing in the sets ends.
func (b *ipt) lasting() time.Time {
	b.span.Lock()
	defer b.span.Unlock()
	return b.until
}
