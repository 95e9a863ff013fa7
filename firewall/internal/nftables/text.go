package nftables

import (
	"fmt"
	"net/netip"
	"strings"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
)

// Text is the guard as text for nft, without grants.
func Text(spec guard.Spec) string {
	w := &text{Spec: spec, mark: fmt.Sprintf("%#08x", spec.Mark)}
	w.line("# The guard, as \"spa-server guard --print\" writes it for a host that loads its rules from a file:")
	w.line("# include this file there, behind the flush. server.toml needs, under [firewall]: persist = \"file\"")
	w.line("# Print it anew when services, knock ports or [firewall] change.")
	w.line("table inet %s", TableName)
	w.line("delete table inet %s", TableName)
	w.open("table inet %s", TableName)
	w.sets()
	for _, chain := range w.chains() {
		w.chain(chain.name, chain.hook, chain.rules...)
	}
	w.shut()
	return w.String()
}

// nftText is nft's language, with what differs from guard to guard.
type text struct {
	guard.Spec
	strings.Builder
	mark  string
	depth int
}

func (w *text) line(format string, args ...any) {
	w.WriteString(strings.Repeat("\t", w.depth))
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

func (w *text) open(format string, args ...any) {
	w.line(format+" {", args...)
	w.depth++
}

func (w *text) shut() {
	w.depth--
	w.line("}")
}

// textFamilies are the words that differ between IPv4 and IPv6.
func textFamilies() []string { return []string{"ip", "ip6"} }

// digit is what our sets of a family have behind their names.
func digit(family string) string { return map[string]string{"ip": "4", "ip6": "6"}[family] }

func (w *text) sets() {
	addresses, targets := map[string][]string{}, map[string][]string{}
	for _, t := range w.Targets {
		for _, a := range t.Addresses {
			f := familyName(a)
			addresses[f] = append(addresses[f], guard.Normal(a).String())
			for _, port := range portList(t.Ports) {
				targets[f] = append(targets[f], guard.Normal(a).String()+" . "+port)
			}
		}
	}
	const port = "inet_proto . inet_service"
	w.set("guarded", port, 0, "timeout", portList(w.Guarded))
	w.set("cut", port, 0, "timeout", portList(w.Cut))
	w.set("near", "iface_index . ipv6_addr . "+port, w.Size, "timeout", nil)
	eachFamily := func(do func(f, address, n string)) {
		for _, f := range textFamilies() {
			do(f, "ipv"+digit(f)+"_addr", digit(f))
		}
	}
	eachFamily(func(_, address, n string) { w.set("grants"+n, address+" . "+port, w.Size, "timeout", nil) })
	eachFamily(func(_, address, n string) {
		w.set("reach"+n, address+" . "+address+" . "+port, w.Size, "timeout", nil)
	})
	eachFamily(func(_, address, n string) {
		w.set("carried"+n, address+" . "+address+" . "+port+" . inet_service", 0, "timeout", nil)
	})
	eachFamily(func(f, address, n string) { w.set("targets"+n, address+" . "+port, 0, "timeout", targets[f]) })
	eachFamily(func(f, address, n string) { w.set("addresses"+n, address, 0, "timeout", addresses[f]) })
	eachFamily(func(_, address, n string) { w.set("met"+n, address+" . "+port, w.Size, "dynamic,timeout", nil) })
	w.set("linked", "iface_index . ipv6_addr . "+port, w.Size, "dynamic,timeout", nil)
}

func familyName(a netip.Addr) string {
	if guard.Normal(a).Is4() {
		return "ip"
	}
	return "ip6"
}

func portList(ranges []service.Ports) []string {
	var list []string
	all := ledger.Holding{Ports: ranges}
	all.Each(func(e guard.Element) { list = append(list, fmt.Sprintf("%v . %d", e.Proto, e.Port)) })
	return list
}

func (w *text) set(name, kind string, size uint32, flags string, elements []string) {
	w.open("set %s", name)
	w.line("type %s", kind)
	if size > 0 {
		w.line("size %d", size)
	}
	w.line("flags %s", flags)
	if len(elements) > 0 {
		w.line("elements = { %s }", strings.Join(elements, ", "))
	}
	w.shut()
}

func (w *text) chain(name, hook string, rules ...string) {
	w.open("chain %s", name)
	if hook != "" {
		w.line("type %s; policy accept;", hook)
	}
	for _, r := range rules {
		w.line("%s", r)
	}
	w.shut()
}
