package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

// At a port of Spec.Once a grant admits one flow. The first packet of a flow adds the grant's key to a set of taken
// grants, together with a limit of one packet for a week. The kernel adds a key once, whichever processor is first,
// and tests the limit of that one element under a lock: so of packets that race, exactly one passes. Whoever passes
// is noted with both addresses and ports, for the packets that come again before the server has answered. Everything
// later passes by the mark of its flow, as at other ports.
//
// A new knock deletes the key. Deleting a key that is missing would fail, so the batch adds it first, with an
// expression that passes no packet (spent).

// onceObjects are the sets and chains for ports at which a grant admits one flow. The arrays have an entry for each
// set of grants, in the order of kinds.
type onceObjects struct {
	ports *nft.Set    // protocol . port
	taken [5]*nft.Set // keys of grants whose flow has come
	more  [5]*nft.Set // keys of grants with a flow more: a second client has one for the same key
	first [2]*nft.Set // remote . local . protocol . remote port . local port of a flow that came; IPv4, IPv6

	turn, entry *nft.Chain
}

const (
	// onceSize bounds the memory of the sets. If one is full, no further flow gets in.
	onceSize = 1 << 16
	// comesAgain is how long a flow that the server has not answered may pause between two packets.
	comesAgain = 5 * time.Minute
	// statusAssured is a bit of linux/netfilter/nf_conntrack_common.h (enum ip_conntrack_status).
	statusAssured = 1 << 2
)

func newOnce(set func(string, ...nft.SetDatatype) *nft.Set, chain func(string) *nft.Chain) onceObjects {
	ip4, ip6, link := nft.TypeIPAddr, nft.TypeIP6Addr, nft.TypeIFIndex
	proto, port := nft.TypeInetProto, nft.TypeInetService
	o := onceObjects{
		ports: set("once", proto, port),
		first: [2]*nft.Set{set("first4", ip4, ip4, proto, port, port), set("first6", ip6, ip6, proto, port, port)},
		turn:  chain("turn"),
		entry: chain("entry"),
	}
	for i, key := range [5][]nft.SetDatatype{{ip4}, {ip6}, {ip4, ip4}, {ip6, ip6}, {link, ip6}} {
		name := []string{"4", "6", "_reach4", "_reach6", "_near"}[i]
		key = append(key, proto, port)
		o.taken[i], o.more[i] = set("taken"+name, key...), set("more"+name, key...)
	}
	for _, s := range slices.Concat(o.taken[:], o.more[:], o.first[:]) {
		s.Size = onceSize
	}
	return o
}

// kinds returns the sets of grants.
func (o *objects) kinds() [5]*nft.Set {
	return [5]*nft.Set{o.Grants4, o.Grants6, o.reach4, o.reach6, o.near}
}

// counts reports whether the set has what flows have taken: only a new table, or a grant, begins it again.
func (o *onceObjects) counts(s *nft.Set) bool {
	return slices.Contains(o.taken[:], s) || slices.Contains(o.more[:], s)
}

// onces reports whether there are ports at which a grant admits one flow.
func (d *Draft) onces() bool { return len(d.spec.Once) > 0 }

// madeOf returns the sets that the table needs.
func (d *Draft) madeOf(sets []*nft.Set) []*nft.Set {
	if d.onces() {
		return sets
	}
	return slices.DeleteFunc(slices.Clone(sets), func(s *nft.Set) bool {
		return d.once.counts(s) || slices.Contains(d.once.first[:], s)
	})
}

// unlessOnce matches packets of ports at which a grant admits any number of flows.
func (d *Draft) unlessOnce(port uint32) Part {
	if !d.onces() {
		return Part{}
	}
	return onPort(port).notIn(d.once.ports)
}

// onceOrNothing decides, under a condition, on packets for ports at which a grant admits one flow. What does not get
// in goes to the chain end; nil drops it.
func (d *Draft) onceOrNothing(c *nft.Chain, condition Part, end *nft.Chain) {
	if !d.onces() {
		return
	}
	once := Rule(condition, onPort(Dport).in(d.once.ports))
	d.rule(c, once, jump(d.once.turn))
	if end == nil {
		d.rule(c, once, Drop())
		return
	}
	d.rule(c, once, enter(end))
}

// onceRules accept packets of the one flow of a grant. What they do not accept returns.
func (d *Draft) onceRules(confirm bool) {
	if !d.onces() {
		return
	}
	c, entry := d.once.turn, d.once.entry
	if confirm {
		d.rule(entry, jump(d.Confirm))
	}
	d.rule(entry, Accept())
	new := CTState(expr.CtStateBitNEW | expr.CtStateBitESTABLISHED) // a port may be used again before its flow is over
	d.eachTurn(func(f *family, granted Part, turn func() *key, kind int) {
		d.onceGoesOn(c, f, granted)
		note := f.flow(inward).updateFor(d.once.first[f.index()], comesAgain)
		for _, begins := range []Part{TCPFlags(Fin|Syn|Rst|Ack, Syn), L4Proto(service.UDP)} {
			begins = Rule(begins, new, granted)
			d.rule(c, begins, turn().take(d.once.taken[kind]), note, d.admit(f, inward), enter(entry))
			d.rule(c, begins, turn().in(d.once.more[kind]), note, d.admit(f, inward), enter(entry))
		}
	})
}

// onceGoesOn accepts what comes again or later in a flow that has taken its grant. Connection tracking takes a flow
// for assured once it is established; see onceOver for one that ends before.
func (d *Draft) onceGoesOn(c *nft.Chain, f *family, granted Part) {
	begins := part("ct status & assured == 0", loadCt(expr.CtKeySTATUS), and(Native(statusAssured)), Equal(Native(0)))
	first := d.once.first[f.index()]
	d.rule(c, granted, f.flow(inward).in(first), begins, f.flow(inward).updateFor(first, comesAgain),
		d.admit(f, inward), Accept())
	if len(d.spec.Cut) == 0 {
		return // door has accepted the rest
	}
	for _, p := range []Part{L4Proto(service.UDP), tcpFlagsNot(Syn|Ack, Syn)} {
		d.rule(c, p, CTState(expr.CtStateBitESTABLISHED), ctMarked(d.spec.Mark), granted,
			f.source(inward).update(f.met), Accept())
	}
}

// onceOver forgets the first packet of a flow that ends: a SYN with the same ports begins another flow then.
func (d *Draft) onceOver(c *nft.Chain, w heading, flag byte) {
	if !d.onces() {
		return
	}
	for _, f := range d.objects.families() {
		d.rule(c, TCPFlags(flag, flag), onPort(w.ownPort()).in(d.once.ports), f.flow(w).forget(d.once.first[f.index()]))
	}
}

// onceBegun passes what leaves in an admitted flow of a live grant.
func (d *Draft) onceBegun() {
	if !d.onces() {
		return
	}
	c := d.begun
	d.eachGrant(outward, func(f *family, granted Part) {
		d.rule(c, onPort(Sport).in(d.once.ports), ctMarked(d.spec.Mark), granted, f.source(outward).update(f.met), back())
	})
}

// eachTurn calls do as eachGrant does, with the key of the grant and its kind.
func (d *Draft) eachTurn(do func(f *family, granted Part, turn func() *key, kind int)) {
	o := &d.objects
	call := func(f *family, here Part, turn func() *key, kind int) {
		do(f, Rule(here, turn().in(o.kinds()[kind])), turn, kind)
	}
	for i, f := range o.families() {
		here := Part{}
		if len(d.spec.Targets) > 0 {
			call(f, here, func() *key { return f.sourceAndTarget(inward) }, 2+i)
			here = f.target(inward).notIn(f.targets)
		}
		call(f, here, func() *key { return f.source(inward) }, i)
	}
	f := o.families()[1]
	here := Part{}
	if len(d.spec.Targets) > 0 {
		here = f.target(inward).notIn(f.targets)
	}
	call(f, here, func() *key { return f.linkAndSource(inward) }, 4)
}

// index is 0 for IPv4 and 1 for IPv6.
func (f *family) index() int {
	if f.proto == unix.NFPROTO_IPV4 {
		return 0
	}
	return 1
}

// flow is both ends of a flow, the peer first: ip saddr . ip daddr . meta l4proto . th sport . th dport inward.
func (f *family) flow(w heading) *key {
	return f.key().address(f, f.peer(w)).address(f, f.own(w)).protocol().port(w.peerPort()).port(w.ownPort())
}

// take adds the key to the set, for the first packet only: for every other one, the rule ends there.
func (k *key) take(s *nft.Set) Part {
	days := guard.Remembered / (24 * time.Hour)
	return part(fmt.Sprintf("add @%s { %s timeout %dd limit rate 1/week burst 1 packets }", s.Name, k.text(), days),
		append(k.exprs, &expr.Dynset{SrcRegKey: Register, SetName: s.Name, SetID: s.ID,
			Operation: unix.NFT_DYNSET_OP_ADD, Timeout: guard.Remembered, Exprs: []expr.Any{one()}})...)
}

// updateFor is update with another timeout, of whole seconds.
func (k *key) updateFor(s *nft.Set, d time.Duration) Part {
	return part(fmt.Sprintf("update @%s { %s timeout %ds }", s.Name, k.text(), d/time.Second),
		append(k.exprs, &expr.Dynset{SrcRegKey: Register, SetName: s.Name, SetID: s.ID,
			Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: d})...)
}

// forget deletes the key from the set.
func (k *key) forget(s *nft.Set) Part {
	const dynsetDelete = 2 // NFT_DYNSET_OP_DELETE
	return part(fmt.Sprintf("delete @%s { %s }", s.Name, k.text()), append(k.exprs, &expr.Dynset{
		SrcRegKey: Register, SetName: s.Name, SetID: s.ID, Operation: dynsetDelete})...)
}

// one passes one packet: a grant of a port of Spec.Once is shorter than a week.
func one() expr.Any {
	return &expr.Limit{Type: expr.LimitTypePkts, Rate: 1, Unit: expr.LimitTimeWeek, Burst: 1}
}

// spent passes no packet.
func spent() expr.Any { return &expr.Quota{Bytes: 1, Consumed: 1} }

// counted adds a command for elements of a set, each with an expression that lookups evaluate.
func (b *batch) counted(s *nft.Set, es []nft.SetElement, e expr.Any) error {
	const elementExpression = 7 // NFTA_SET_ELEM_EXPR
	marshaled, err := expr.Marshal(byte(s.Table.Family), e)
	if err != nil {
		return err
	}
	data := append(make([]byte, 0, 64+96*len(es)), header(s.Table)...)
	data = nl.Text(data, unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	data = nl.Text(data, unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	b.create(unix.NFT_MSG_NEWSETELEM, nl.Nested(data, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(data []byte) []byte {
		for _, el := range es {
			data = nl.Nested(data, unix.NFTA_LIST_ELEM, func(data []byte) []byte {
				return nl.Nested(appendElement(data, &el), elementExpression,
					func(data []byte) []byte { return append(data, marshaled...) })
			})
		}
		return data
	}))
	return nil
}

// clear deletes elements that may be missing.
func (b *batch) clear(s *nft.Set, es []nft.SetElement) error {
	err := b.counted(s, es, spent())
	b.repeat(unix.NFT_MSG_DELSETELEM)
	return err
}

// spend makes elements that pass no packet, whatever they were before.
func (b *batch) spend(s *nft.Set, es []nft.SetElement) error {
	err := b.clear(s, es)
	b.create(unix.NFT_MSG_NEWSETELEM, b.messages[len(b.messages)-2].Data)
	return err
}

// onceElement returns the kind of the lease's set, and the lease's key as an element for as long as flows are
// remembered.
func (o *objects) onceElement(l guard.Lease) (kind int, es []nft.SetElement) {
	s, key := o.setOf(l.Element)
	kinds := o.kinds()
	return slices.Index(kinds[:], s), []nft.SetElement{{Key: PortKey(key, l.Proto, l.Port), Timeout: guard.Remembered}}
}

// turns adds what leases change about the one flow of their grants.
func (n *Backend) turns(b *batch, ls []guard.Lease) error {
	for _, l := range ls {
		if !n.Spec.AdmitsOne(l) {
			continue
		}
		if err := n.turn(b, l); err != nil {
			return err
		}
	}
	return nil
}

func (n *Backend) turn(b *batch, l guard.Lease) error {
	kind, es := n.Objects.onceElement(l)
	taken, more := n.Objects.once.taken[kind], n.Objects.once.more[kind]
	besides := guard.Remaining(l.Besides, n.Spec.Now())
	switch {
	case l.Remaining <= 0:
		return errors.Join(b.clear(taken, es), b.clear(more, es))
	case l.Turn == guard.SameTurn:
		return nil
	case l.Turn == guard.NoMore:
		return b.clear(more, es)
	case l.Besides.IsZero() || besides <= 0:
		return errors.Join(b.clear(taken, es), b.clear(more, es))
	}
	// The other grant's flow can come at any time, but it never leaves again.
	came, err := n.came(taken, es)
	if err != nil {
		return err
	}
	if came {
		return b.clear(taken, es)
	}
	err = b.clear(more, es)
	es[0].Timeout = besides
	return errors.Join(err, b.counted(more, es, one()))
}

// came reports whether the set has the element.
func (n *Backend) came(s *nft.Set, es []nft.SetElement) (bool, error) {
	_, err := n.Socket.Execute(netlink.Message{
		Header: netlink.Header{Type: nfType(unix.NFT_MSG_GETSETELEM), Flags: netlink.Request},
		Data:   elementsMessage(s, []nft.SetElement{{Key: es[0].Key}}),
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, explain("reading what a grant has admitted", err)
	}
	return true, nil
}

// spendAll makes the grants of all leases ones that have admitted their flow.
func (d *Draft) spendAll(b *batch, ls []guard.Lease) error {
	if !d.onces() {
		return nil
	}
	for _, s := range d.once.more {
		b.flushSet(s)
	}
	es := make(map[int][]nft.SetElement)
	for _, l := range ls {
		if d.spec.AdmitsOne(l) {
			kind, e := d.onceElement(l)
			es[kind] = append(es[kind], e...)
		}
	}
	for kind, all := range es {
		for part := range slices.Chunk(all, nl.Chunk) {
			if err := b.spend(d.once.taken[kind], part); err != nil {
				return err
			}
		}
	}
	return nil
}

// Taken lists the elements whose grant has admitted its flow.
func (n *Backend) Taken() ([]guard.Element, error) {
	if len(n.Spec.Once) == 0 {
		return nil, nil
	}
	var all []guard.Element
	for kind, s := range n.Objects.once.taken {
		es, err := n.Elements(s)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, explain("reading what grants have admitted", err)
		}
		for _, e := range es {
			all = append(all, elementOf(kind, e.Key))
		}
	}
	return all, nil
}

// elementOf returns the element of a key of a kind.
func elementOf(kind int, key []byte) guard.Element {
	var e guard.Element
	at := len(key) - 8
	e.Proto, e.Port = service.Proto(key[at]), binary.BigEndian.Uint16(key[at+4:])
	key = key[:at]
	switch kind {
	case 2, 3:
		e.To, _ = netip.AddrFromSlice(key[at/2:])
		key = key[:at/2]
	case 4:
		e.Link = binary.NativeEndian.Uint32(key)
		key = key[4:]
	}
	e.Source, _ = netip.AddrFromSlice(key)
	return e
}

// canCount probes whether the kernel evaluates expressions of elements that a batch adds (Linux 5.7): an older one
// would ignore them, and a grant that has admitted its flow would admit any number. The batch always fails as a whole:
// on an expression that no element may have, or at its end.
func (n *Backend) canCount() (bool, error) {
	var b batch
	s := *n.Objects.once.more[0]
	s.Table = &nft.Table{Name: "spa-probe", Family: nft.TableFamilyINet}
	b.table(unix.NFT_MSG_NEWTABLE, s.Table.Name, nil)
	b.set(&s)
	key := make([]byte, 12)
	if err := b.counted(&s, []nft.SetElement{{Key: key, Timeout: time.Second}}, Equal(key[:4])); err != nil {
		return false, err
	}
	b.table(unix.NFT_MSG_DELTABLE, "spa-probe-absent", nil)
	switch err := b.send(n.Socket); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err == nil:
		return false, errors.New("a batch that must fail succeeded")
	default:
		return false, explain("probing whether elements can count", err)
	}
}

// errCannotCount is returned by Load.
var errCannotCount = errors.New("this kernel cannot admit one connection only, as once = true asks for: that needs " +
	"Linux 5.7 or later and nft's limit and quota; remove the setting")

// checkOnce returns an error if the kernel cannot do what Spec.Once asks for.
func (n *Backend) checkOnce() error {
	if len(n.Spec.Once) == 0 {
		return nil
	}
	for _, e := range []string{"limit", "quota"} { // the first load is also the last moment to load modules
		if known, err := n.Knows(e); err != nil || !known {
			return errors.Join(err, fmt.Errorf("%w (CONFIG_NFT_%s)", errCannotCount, strings.ToUpper(e)))
		}
	}
	can, err := n.canCount()
	if err == nil && !can {
		err = errCannotCount
	}
	return err
}
