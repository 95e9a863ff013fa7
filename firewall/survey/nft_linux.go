package survey

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// kernel reads nf_tables in the network namespace where it was opened. It never writes.
type kernel struct {
	socket *netlink.Conn
	known  map[Set]attributes
	read   map[Set]*elements
}

func openKernel() (*kernel, error) {
	socket, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	return &kernel{socket: socket, known: make(map[Set]attributes), read: make(map[Set]*elements)}, nil
}

// object is one object of a dump.
type object struct {
	family string
	attrs  attributes
}

// dump lists objects of one family, or of all, and retries if they changed during the listing.
func (k *kernel) dump(what string, message uint16, family byte, attrs []byte) ([]object, error) {
	const tries = 5
	var err error
	for range tries {
		var answers []netlink.Message
		answers, err = k.socket.Execute(netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message),
				Flags: netlink.Request | netlink.Dump},
			Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...),
		})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			break
		}
		return objects(answers), nil
	}
	return nil, fmt.Errorf("listing %s of nf_tables: %w", what, err)
}

func objects(answers []netlink.Message) []object {
	var all []object
	for _, m := range answers {
		if len(m.Data) < 4 {
			continue
		}
		if family, ok := families[m.Data[0]]; ok {
			all = append(all, object{family, parseAttributes(m.Data[4:])})
		}
	}
	return all
}

// families are those whose chains packets for this host's addresses pass.
var families = map[byte]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_NETDEV: "netdev",
}

// tables reads everything except the elements of sets.
func (k *kernel) tables(r *Ruleset) error {
	tables, err := k.dump("tables", unix.NFT_MSG_GETTABLE, unix.NFPROTO_UNSPEC, nil)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // a kernel without nf_tables
	}
	if err != nil {
		return err
	}
	chains, err := k.dump("chains", unix.NFT_MSG_GETCHAIN, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return err
	}
	rules, err := k.dump("rules", unix.NFT_MSG_GETRULE, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return err
	}
	sets, err := k.dump("sets", unix.NFT_MSG_GETSET, unix.NFPROTO_UNSPEC, nil)
	if err != nil {
		return err
	}
	for _, o := range tables {
		r.addTable(o)
	}
	for _, o := range chains {
		r.addChain(o)
	}
	for _, o := range rules {
		r.addRule(o)
	}
	for _, o := range sets {
		k.known[Set{o.family, o.attrs.str(unix.NFTA_SET_TABLE), o.attrs.str(unix.NFTA_SET_NAME)}] = o.attrs
	}
	return nil
}

func (r *Ruleset) addTable(o object) {
	const owner, persist = 2, 4 // NFT_TABLE_F_OWNER, NFT_TABLE_F_PERSIST
	flags := o.attrs.u32(unix.NFTA_TABLE_FLAGS)
	key := tableKey{nftables, o.family, o.attrs.str(unix.NFTA_TABLE_NAME)}
	r.tables[key] = &table{
		tableKey: key, program: "nft", chains: make(map[string]*chain),
		owned: flags&owner != 0, persistent: flags&persist != 0,
	}
}

func (r *Ruleset) addChain(o object) {
	t := r.tables[tableKey{nftables, o.family, o.attrs.str(unix.NFTA_CHAIN_TABLE)}]
	if t == nil {
		return // made after the tables were listed
	}
	c := &chain{table: t, name: o.attrs.str(unix.NFTA_CHAIN_NAME)}
	t.chains[c.name] = c
	if !o.attrs.has(unix.NFTA_CHAIN_HOOK) {
		return
	}
	h := o.attrs.nested(unix.NFTA_CHAIN_HOOK)
	c.hook = hookOf(o.family, h.u32(unix.NFTA_HOOK_HOOKNUM))
	c.priority = int32(h.u32(unix.NFTA_HOOK_PRIORITY))
	c.drop = o.attrs.has(unix.NFTA_CHAIN_POLICY) && o.attrs.u32(unix.NFTA_CHAIN_POLICY) == 0
	c.devices = devices(h)
}

// hookOf translates the number of a hook (linux/netfilter.h).
func hookOf(family string, number uint32) hook {
	const inetIngress = 5 // NF_INET_INGRESS
	if family == "netdev" {
		if number == unix.NF_NETDEV_INGRESS {
			return ingress
		}
		return elsewhere
	}
	switch number {
	case unix.NF_INET_PRE_ROUTING:
		return prerouting
	case unix.NF_INET_LOCAL_IN:
		return input
	case unix.NF_INET_FORWARD:
		return forward
	case inetIngress:
		return ingress
	}
	return elsewhere
}

// devices returns the devices that an ingress chain is bound to.
func devices(h attributes) []string {
	const many = 4 // NFTA_HOOK_DEVS
	var names []string
	if one := h.str(unix.NFTA_HOOK_DEV); one != "" {
		names = append(names, one)
	}
	for _, d := range list(h.raw(many)) {
		names = append(names, string(bytes.TrimRight(d.Data, "\x00")))
	}
	return names
}

func (r *Ruleset) addRule(o object) {
	t := r.tables[tableKey{nftables, o.family, o.attrs.str(unix.NFTA_RULE_TABLE)}]
	if t == nil {
		return
	}
	c := t.chains[o.attrs.str(unix.NFTA_RULE_CHAIN)]
	if c == nil {
		return
	}
	rule := &nftRule{handle: o.attrs.u64(unix.NFTA_RULE_HANDLE), table: t}
	for _, e := range list(o.attrs.raw(unix.NFTA_RULE_EXPRESSIONS)) {
		step := parseExpression(e.Data)
		var known bool
		if step.run, known = steps[step.name]; !known {
			step.run = (*machine).doubt
		}
		rule.steps = append(rule.steps, step)
	}
	c.rules = append(c.rules, rule)
}

func parseExpression(raw []byte) expression {
	a := parseAttributes(raw)
	return expression{name: a.str(unix.NFTA_EXPR_NAME), attrs: a.nested(unix.NFTA_EXPR_DATA)}
}

// set returns the elements of a set.
func (k *kernel) set(s Set) (*elements, error) {
	if es, ok := k.read[s]; ok {
		return es, nil
	}
	attrs, ok := k.known[s]
	if !ok {
		return nil, fmt.Errorf("no set %s in table %s %s", s.Name, s.Family, s.Table)
	}
	es := setOf(attrs)
	request, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: append([]byte(s.Table), 0)},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(s.Name), 0)},
	})
	if err != nil {
		return nil, err
	}
	answers, err := k.dump("a set", unix.NFT_MSG_GETSETELEM, number(s.Family), request)
	if err != nil {
		return nil, err
	}
	for _, o := range answers {
		for _, e := range list(o.attrs.raw(unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			es.list = append(es.list, elementOf(parseAttributes(e.Data)))
		}
	}
	k.read[s] = es
	return es, nil
}

// number is the reverse of families.
func number(family string) byte {
	for n, name := range families {
		if name == family {
			return n
		}
	}
	return unix.NFPROTO_UNSPEC
}

func (k *kernel) shape(s Set) *elements { return setOf(k.known[s]) }

// setOf describes a set, without its elements.
func setOf(a attributes) *elements {
	const interval, concat, fieldLen = 4, 2, 1 // NFT_SET_INTERVAL, NFTA_SET_DESC_CONCAT, NFTA_SET_FIELD_LEN
	es := &elements{interval: a.u32(unix.NFTA_SET_FLAGS)&interval != 0}
	for _, f := range list(a.nested(unix.NFTA_SET_DESC).raw(concat)) {
		es.fields = append(es.fields, int(parseAttributes(f.Data).u32(fieldLen)))
	}
	if len(es.fields) < 2 {
		es.fields = []int{int(a.u32(unix.NFTA_SET_KEY_LEN))}
	}
	return es
}

func elementOf(a attributes) element {
	const keyEnd = 10          // NFTA_SET_ELEM_KEY_END
	const end, catchAll = 1, 2 // NFT_SET_ELEM_INTERVAL_END, NFT_SET_ELEM_CATCHALL
	flags := a.u32(unix.NFTA_SET_ELEM_FLAGS)
	e := element{
		key: a.value(unix.NFTA_SET_ELEM_KEY), last: a.value(keyEnd),
		end: flags&end != 0, rest: flags&catchAll != 0, data: a.value(unix.NFTA_SET_ELEM_DATA),
	}
	e.verdict, e.decides = verdictOf(a.nested(unix.NFTA_SET_ELEM_DATA))
	return e
}
