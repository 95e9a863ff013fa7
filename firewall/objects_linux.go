package firewall

import (
	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// objects names what our table is made of.
type objects struct {
	table *nft.Table

	guarded, cut           *nft.Set // protocol . port
	grants4, grants6       *nft.Set // source . protocol . port, at this host
	reach4, reach6         *nft.Set // source . destination . protocol . port, at targets
	near                   *nft.Set // interface . source . protocol . port, of link-local sources
	met4, met6             *nft.Set // source . protocol . port that a grant has admitted
	linked                 *nft.Set // the same with the interface, of link-local sources
	carried4, carried6     *nft.Set // remote . local . protocol . remote port . local port
	targets4, targets6     *nft.Set // address . protocol . port of services with addresses of their own
	addresses4, addresses6 *nft.Set // their addresses

	marker, receipt, knock                                      *nft.Chain
	guard, door, links, ended, confirm, closed, refused, quoted *nft.Chain
	claim, arrive, revive, begun, passing, hush                 *nft.Chain
}

// newObjects is our table; newObjectsOf is another one of the same make.
func newObjects(size uint32) objects { return newObjectsOf(tableName, size) }

func newObjectsOf(table string, size uint32) objects {
	t := &nft.Table{Name: table, Family: nft.TableFamilyINet}
	ip4, ip6 := nft.TypeIPAddr, nft.TypeIP6Addr
	proto, port := nft.TypeInetProto, nft.TypeInetService
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
		table:      t,
		guarded:    set("guarded", proto, port),
		cut:        set("cut", proto, port),
		grants4:    set("grants4", ip4, proto, port),
		grants6:    set("grants6", ip6, proto, port),
		carried4:   set("carried4", ip4, ip4, proto, port, port),
		carried6:   set("carried6", ip6, ip6, proto, port, port),
		reach4:     set("reach4", ip4, ip4, proto, port),
		reach6:     set("reach6", ip6, ip6, proto, port),
		near:       set("near", nft.TypeIFIndex, ip6, proto, port),
		met4:       set("met4", ip4, proto, port),
		met6:       set("met6", ip6, proto, port),
		linked:     set("linked", nft.TypeIFIndex, ip6, proto, port),
		targets4:   set("targets4", ip4, proto, port),
		targets6:   set("targets6", ip6, proto, port),
		addresses4: set("addresses4", ip4),
		addresses6: set("addresses6", ip6),
		marker:     chain(markerChain),
		door:       chain("door"),
		links:      chain("links"),
		ended:      chain("ended"),
		confirm:    chain("confirm"),
		closed:     chain("closed"),
		refused:    chain("refused"),
		quoted:     chain("quoted"),
		begun:      chain("begun"),
		knock:      hooked(chain("knock"), nft.ChainHookPrerouting, -310),
		guard:      hooked(chain("guard"), nft.ChainHookPrerouting, -110),
		claim:      hooked(chain("claim"), nft.ChainHookPrerouting, -101),
		arrive:     hooked(chain("arrive"), nft.ChainHookInput, -310),
		revive:     hooked(chain("revive"), nft.ChainHookOutput, -110),
		passing:    hooked(chain("passing"), nft.ChainHookForward, -110),
		hush:       hooked(chain("hush"), nft.ChainHookPostrouting, 110),
		receipt:    hooked(chain("receipt"), nft.ChainHookOutput, -300),
	}
	for _, s := range []*nft.Set{o.grants4, o.grants6, o.reach4, o.reach6, o.near, o.met4, o.met6, o.linked} {
		s.Size = size
	}
	for _, s := range o.learned() {
		s.Dynamic = true
	}
	o.claim.Type = nft.ChainTypeNAT
	return o
}

// hooked makes a chain a base chain whose policy is to accept.
func hooked(c *nft.Chain, hook *nft.ChainHook, priority nft.ChainPriority) *nft.Chain {
	accept := nft.ChainPolicyAccept
	c.Type, c.Hooknum, c.Priority, c.Policy = nft.ChainTypeFilter, hook, &priority, &accept
	return c
}

// sets are those whose elements a load decides.
func (o *objects) sets() []*nft.Set {
	return []*nft.Set{
		o.guarded, o.cut, o.near, o.grants4, o.grants6, o.reach4, o.reach6,
		o.carried4, o.carried6, o.targets4, o.targets6, o.addresses4, o.addresses6,
	}
}

// learned are the sets that rules fill.
func (o *objects) learned() []*nft.Set { return []*nft.Set{o.met4, o.met6, o.linked} }

// chains has those that are jumped to before those that jump.
func (o *objects) chains() []*nft.Chain {
	return []*nft.Chain{
		o.marker, o.refused, o.closed, o.quoted, o.ended, o.confirm, o.links, o.begun, o.door,
		o.receipt, o.knock, o.guard, o.arrive, o.revive, o.passing, o.hush, o.claim,
	}
}
