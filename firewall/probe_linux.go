package firewall

import (
	"errors"
	"fmt"
	"strings"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What a kernel may lack without which there is still a guard, in the words of describe.
const (
	lacksReject        = "reject in prerouting, so strangers' packets are dropped"
	lacksNotrack       = "notrack, so whoever gets a receipt from a shared knock port that is guarded too may answer to it"
	lacksConntrackDump = "a list of tracked connections (nf_conntrack_netlink), so the first load ends sessions that DNAT leads on"
)

// feature is something that rules need, and a rule that needs it.
type feature struct {
	name  string
	hook  *nft.ChainHook
	exprs exprs
	lacks string // what describe says where it is optional
}

func features() []feature {
	pre, out := nft.ChainHookPrerouting, nft.ChainHookOutput
	return []feature{
		{name: "the inet family (CONFIG_NF_TABLES_INET)", hook: pre, exprs: accept()},
		{name: "connection tracking (CONFIG_NFT_CT)", hook: pre, exprs: isReply()},
		{name: "fib (CONFIG_NFT_FIB_INET)", hook: pre, exprs: exprs{fib()}},
		{name: "reject", hook: pre, exprs: unreachable(), lacks: lacksReject},
		{name: "notrack", hook: out, exprs: exprs{&expr.Notrack{}}, lacks: lacksNotrack},
	}
}

// probe asks the kernel whether it takes what the guard is made of, and returns what is
// missing but can be done without. It tries each in a batch that cannot succeed as a
// whole, so nothing is changed; modules are loaded while there is still the privilege.
func (n *nftables) probe() (lacks []string, err error) {
	var missing []string
	for _, f := range features() {
		ok, err := n.has(f)
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
	if len(missing) > 0 {
		return nil, fmt.Errorf("firewall: this kernel cannot guard: it lacks %s", strings.Join(missing, ", "))
	}
	if _, err := n.socket.Execute(ctRequest(ctGetStats, netlink.Request|netlink.Dump, nil)); err != nil {
		lacks = append(lacks, lacksConntrackDump)
	}
	return lacks, nil
}

// has tries a feature in a table that is never made: the last command of the batch makes
// a table that is deleted already, which fails alone if all others are fine.
func (n *nftables) has(f feature) (bool, error) {
	t := &nft.Table{Name: "spa-probe", Family: nft.TableFamilyINet}
	n.conn.AddTable(t)
	c := n.conn.AddChain(hooked(&nft.Chain{Table: t, Name: "probe"}, f.hook, -110))
	n.conn.AddRule(&nft.Rule{Table: t, Chain: c, Exprs: f.exprs})
	n.conn.DelTable(&nft.Table{Name: "spa-probe-absent", Family: nft.TableFamilyINet})
	err := n.conn.Flush()
	if err == nil {
		return false, errors.New("firewall: a batch that had to fail did not")
	}
	failed := failures(err)
	if err := drain(n.socket); err != nil {
		return false, err
	}
	for _, err := range failed {
		if errors.Is(err, unix.EPERM) {
			return false, explain("asking what the kernel can do", err)
		}
	}
	return len(failed) == 1 && errors.Is(failed[0], unix.ENOENT), nil
}

// failures takes apart what Flush joins: an error for each command that failed.
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
