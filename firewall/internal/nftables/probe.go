package nftables

import (
	"errors"
	"fmt"
	"strings"

	"sallyport/firewall/internal/nl"
	"sallyport/firewall/internal/sessions"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Features that a kernel may lack and still have a guard, in the words of Describe.
const (
	lacksReject        = "reject in prerouting, so strangers' packets are dropped"
	lacksNAT           = "address translation (CONFIG_NFT_NAT), so strangers' resets differ from those of closed ports"
	lacksNotrack       = "notrack, so a client may reply to a receipt from a shared knock port that is also guarded"
	lacksConntrackDump = "a list of tracked connections (nf_conntrack_netlink), so the first load ends " +
		"sessions that DNAT leads to another machine"
)

// Feature is something that rules need, with a rule that needs it.
type Feature struct {
	name  string
	Hook  *nft.ChainHook
	Rule  Part
	lacks string // the words of Describe, for an optional feature
}

func features() []Feature {
	pre, out := nft.ChainHookPrerouting, nft.ChainHookOutput
	return []Feature{
		{name: "the inet family (CONFIG_NF_TABLES_INET)", Hook: pre, Rule: Accept()},
		{name: "fib (CONFIG_NFT_FIB_INET)", Hook: pre, Rule: Raw(destination.fib())},
		{name: "reject", Hook: pre, Rule: unreachable(), lacks: lacksReject},
		{name: "notrack", Hook: out, Rule: notrack(), lacks: lacksNotrack},
	}
}

// probe checks that the kernel supports everything that the guard needs, and returns the optional features that are
// missing. It tries each in a batch that always fails as a whole, so nothing is changed; the kernel loads modules
// while the privilege for it is still there.
func (n *Backend) probe() (lacks []string, err error) {
	var missing []string
	for _, f := range features() {
		ok, err := n.Has(f)
		switch {
		case err != nil:
			return nil, err
		case ok:
		case f.lacks != "":
			lacks = append(lacks, f.lacks)
		default:
			missing = append(missing, f.name)
		}
	}
	tracks, err := n.Knows("ct")
	if err != nil {
		return nil, err
	}
	if !tracks {
		missing = append(missing, "connection tracking (CONFIG_NFT_CT)")
	}
	translates, err := n.Knows("nat")
	if err != nil {
		return nil, err
	}
	if !translates {
		lacks = append(lacks, lacksNAT)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("this kernel cannot guard: it lacks %s", strings.Join(missing, ", "))
	}
	if !sessions.TellsTracked(n.Socket) {
		lacks = append(lacks, lacksConntrackDump)
	}
	return lacks, nil
}

// Has tries a feature in a table that is never made: the last command of the batch deletes a missing table, and is
// the only one to fail if all others are fine.
func (n *Backend) Has(f Feature) (bool, error) {
	t := &nft.Table{Name: "spa-probe", Family: nft.TableFamilyINet}
	n.Conn.AddTable(t)
	c := n.Conn.AddChain(Hooked(&nft.Chain{Table: t, Name: "probe"}, f.Hook, -110))
	n.Conn.AddRule(&nft.Rule{Table: t, Chain: c, Exprs: f.Rule.Exprs})
	n.Conn.DelTable(&nft.Table{Name: "spa-probe-absent", Family: nft.TableFamilyINet})
	err := n.Conn.Flush()
	if err == nil {
		return false, errors.New("a batch that must fail succeeded")
	}
	failed := failures(err)
	if err := nl.Drain(n.Socket); err != nil {
		return false, err
	}
	for _, err := range failed {
		if errors.Is(err, unix.EPERM) {
			return false, explain("probing the kernel", err)
		}
	}
	return len(failed) == 1 && errors.Is(failed[0], unix.ENOENT), nil
}

// Knows probes for an expression with a rule that the kernel refuses before it prepares it: preparing a conntrack
// expression starts connection tracking, and there may be no guard yet (see Tracks).
func (n *Backend) Knows(expression string) (bool, error) { return n.knows(expression, nil) }

// knows is Knows for an expression with attributes, which must be invalid.
func (n *Backend) knows(expression string, attributes []byte) (bool, error) {
	const chain = "probe"
	named := func(table, name uint16) []byte {
		data := nl.Attribute([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, table, []byte("spa-probe\x00"))
		return nl.Attribute(data, name, []byte(chain+"\x00"))
	}
	rule := nl.Nested(named(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN), unix.NFTA_RULE_EXPRESSIONS,
		func(data []byte) []byte {
			return nl.Nested(data, unix.NFTA_LIST_ELEM, func(data []byte) []byte {
				data = nl.Attribute(data, unix.NFTA_EXPR_NAME, []byte(expression+"\x00"))
				return nl.Nested(data, unix.NFTA_EXPR_DATA, func(data []byte) []byte {
					return append(data, attributes...)
				})
			})
		})
	var b batch
	b.table(unix.NFT_MSG_NEWTABLE, "spa-probe", nil)
	b.append(nfType(unix.NFT_MSG_NEWCHAIN), netlink.Request|netlink.Create,
		named(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME))
	b.append(nfType(unix.NFT_MSG_NEWRULE), netlink.Request|netlink.Create|netlink.Append, rule)
	switch err := b.send(n.Socket); {
	case err == nil:
		return false, errors.New("a batch that must fail succeeded")
	case errors.Is(err, unix.EINVAL):
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	default:
		return false, explain("probing the kernel", err)
	}
}

// failures splits what Flush joins: one error for each command that failed.
func failures(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, failures(e)...)
		}
		return all
	}
	return []error{err}
}
