package nftables

import (
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"

	"sallyport/firewall/internal/guard"
)

// objects names the sets and chains of our table.
type objects struct {
	Table *nft.Table

	Guarded, cut           *nft.Set // protocol . port
	Grants4, Grants6       *nft.Set // source . protocol . port, at this host
	reach4, reach6         *nft.Set // source . destination . protocol . port, at targets
	near                   *nft.Set // interface . source . protocol . port, of link-local sources
	met4, met6             *nft.Set // source . protocol . port that a grant admitted
	linked                 *nft.Set // interface . source . protocol . port, of link-local sources
	away4, away6           *nft.Set // interface . destination of flows that targets begin
	Carried4, Carried6     *nft.Set // remote . local . protocol . remote port . local port
	targets4, targets6     *nft.Set // address . protocol . port of services with addresses of their own
	addresses4, addresses6 *nft.Set // their addresses
	spans                  []spanned

	once onceObjects

	Marker, receipt, knock                                      *nft.Chain
	Guard, door, links, Ended, Confirm, closed, refused, quoted *nft.Chain
	Claim, arrive, revive, begun, passing, hush                 *nft.Chain
	lead, mask                                                  *nft.Chain
}

// NewObjects returns the objects of our table, with sets for networks of these widths.
func NewObjects(size uint32, spans ...guard.Span) objects {
	return NewObjectsOf(TableName, size, spans...)
}

// NewObjectsOf returns the objects of another table of the same make.
func NewObjectsOf(table string, size uint32, spans ...guard.Span) objects {
	t := &nft.Table{Name: table, Family: nft.TableFamilyINet}
	ip4, ip6, proto, port := nft.TypeIPAddr, nft.TypeIP6Addr, nft.TypeInetProto, nft.TypeInetService
	set := func(name string, key ...nft.SetDatatype) *nft.Set {
		return &nft.Set{
			Table: t, Name: name,
			KeyType:       nft.MustConcatSetType(key...),
			Concatenation: len(key) > 1,
			HasTimeout:    true,
			KeyByteOrder:  binaryutil.BigEndian,
		}
	}
	chain := func(name string) *nft.Chain { return &nft.Chain{Table: t, Name: name} }
	o := objects{
		Table:      t,
		Guarded:    set("guarded", proto, port),
		cut:        set("cut", proto, port),
		Grants4:    set("grants4", ip4, proto, port),
		Grants6:    set("grants6", ip6, proto, port),
		Carried4:   set("carried4", ip4, ip4, proto, port, port),
		Carried6:   set("carried6", ip6, ip6, proto, port, port),
		reach4:     set("reach4", ip4, ip4, proto, port),
		reach6:     set("reach6", ip6, ip6, proto, port),
		near:       set("near", nft.TypeIFIndex, ip6, proto, port),
		met4:       set("met4", ip4, proto, port),
		met6:       set("met6", ip6, proto, port),
		linked:     set("linked", nft.TypeIFIndex, ip6, proto, port),
		away4:      set("away4", nft.TypeIFIndex, ip4),
		away6:      set("away6", nft.TypeIFIndex, ip6),
		targets4:   set("targets4", ip4, proto, port),
		targets6:   set("targets6", ip6, proto, port),
		addresses4: set("addresses4", ip4),
		addresses6: set("addresses6", ip6),
		Marker:     chain(markerChain),
		door:       chain("door"),
		links:      chain("links"),
		Ended:      chain("ended"),
		Confirm:    chain("confirm"),
		closed:     chain("closed"),
		refused:    chain("refused"),
		quoted:     chain("quoted"),
		begun:      chain("begun"),
		knock:      Hooked(chain("knock"), nft.ChainHookPrerouting, -310),
		Guard:      Hooked(chain("guard"), nft.ChainHookPrerouting, -110),
		Claim:      translating(Hooked(chain("claim"), nft.ChainHookPrerouting, -101)),
		lead:       translating(Hooked(chain("lead"), nft.ChainHookPrerouting, -102)),
		mask:       translating(Hooked(chain("mask"), nft.ChainHookPostrouting, 99)),
		arrive:     Hooked(chain("arrive"), nft.ChainHookInput, -310),
		revive:     Hooked(chain("revive"), nft.ChainHookOutput, -110),
		passing:    Hooked(chain("passing"), nft.ChainHookForward, -110),
		hush:       Hooked(chain("hush"), nft.ChainHookPostrouting, 110),
		receipt:    Hooked(chain("receipt"), nft.ChainHookOutput, -300),
	}
	o.once = newOnce(set, chain)
	o.describe(size)
	o.spans = newSpanned(spans, size, set)
	o.number()
	return o
}

// describe sets the attributes that some sets have.
func (o *objects) describe(size uint32) {
	for _, s := range []*nft.Set{o.Grants4, o.Grants6, o.reach4, o.reach6, o.near, o.met4, o.met6, o.linked} {
		s.Size = size
	}
	o.away4.Size, o.away6.Size = min(size, guard.AwaySize), min(size, guard.AwaySize)
	for _, s := range o.Learned() {
		s.Dynamic = true
	}
}

// number gives each set an id within a batch.
func (o *objects) number() {
	for i, s := range append(o.Sets(), o.Learned()...) {
		s.ID = uint32(i) + 1
	}
}

// Hooked makes a chain a base chain with policy accept.
func Hooked(c *nft.Chain, hook *nft.ChainHook, priority nft.ChainPriority) *nft.Chain {
	accept := nft.ChainPolicyAccept
	c.Type, c.Hooknum, c.Priority, c.Policy = nft.ChainTypeFilter, hook, &priority, &accept
	return c
}

// translating makes a base chain one of type nat.
func translating(c *nft.Chain) *nft.Chain {
	c.Type = nft.ChainTypeNAT
	return c
}

// Sets returns the sets that a load fills.
func (o *objects) Sets() []*nft.Set {
	sets := []*nft.Set{
		o.Guarded, o.cut, o.near, o.Grants4, o.Grants6, o.reach4, o.reach6,
		o.Carried4, o.Carried6, o.targets4, o.targets6, o.addresses4, o.addresses6, o.once.ports,
	}
	for _, n := range o.spans {
		sets = append(sets, n.here, n.there)
	}
	return append(sets, o.once.more[:]...)
}

// Learned returns the sets that rules fill.
func (o *objects) Learned() []*nft.Set {
	return slices.Concat([]*nft.Set{o.met4, o.met6, o.linked, o.away4, o.away6}, o.once.taken[:], o.once.first[:])
}

// Chains returns all chains, those that are jumped to before those that jump.
func (o *objects) Chains() []*nft.Chain {
	return []*nft.Chain{
		o.Marker, o.refused, o.closed, o.quoted, o.Ended, o.Confirm, o.once.entry, o.once.turn, o.links, o.begun, o.door,
		o.receipt, o.knock, o.Guard, o.arrive, o.revive, o.passing, o.hush, o.Claim, o.lead,
		o.mask,
	}
}
