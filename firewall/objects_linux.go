package firewall

import (
	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// objects names what our table is made of.
type objects struct {
	table *nft.Table

	guarded, cut           *nft.Set // protocol . port
	grants4, grants6       *nft.Set // source . protocol . port
	carried4, carried6     *nft.Set // remote . local . protocol . remote port . local port
	addresses4, addresses6 *nft.Set // guarded destinations beside the host's own

	marker, knock, guard, confirm, ended, revive, receipt, hush *nft.Chain
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
		addresses4: set("addresses4", ip4),
		addresses6: set("addresses6", ip6),
		marker:     chain(markerChain),
		confirm:    chain("confirm"),
		ended:      chain("ended"),
		knock:      hooked(chain("knock"), nft.ChainHookPrerouting, -310),
		guard:      hooked(chain("guard"), nft.ChainHookPrerouting, -110),
		revive:     hooked(chain("revive"), nft.ChainHookOutput, -110),
		hush:       hooked(chain("hush"), nft.ChainHookPostrouting, 110),
		receipt:    hooked(chain("receipt"), nft.ChainHookOutput, -300),
	}
	o.grants4.Size, o.grants6.Size = size, size
	return o
}

// hooked makes a chain a base chain whose policy is to accept.
func hooked(c *nft.Chain, hook *nft.ChainHook, priority nft.ChainPriority) *nft.Chain {
	accept := nft.ChainPolicyAccept
	c.Type, c.Hooknum, c.Priority, c.Policy = nft.ChainTypeFilter, hook, &priority, &accept
	return c
}

func (o *objects) sets() []*nft.Set {
	return []*nft.Set{o.guarded, o.cut, o.grants4, o.grants6, o.carried4, o.carried6, o.addresses4, o.addresses6}
}

func (o *objects) chains() []*nft.Chain {
	return []*nft.Chain{o.marker, o.confirm, o.ended, o.knock, o.guard, o.revive, o.receipt, o.hush}
}
