package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"sallyport/spa"
)

// Rules returns the guard as text for nft, without grants, for the administrator's own rule
// file: nft -f loads it, alone or behind a flush in the same file, and a daemon with
// PersistFile takes over the table that it makes and fills in live grants. It reads as the
// comments in the code that makes the same rules over netlink.
func Rules(c Config) (string, error) {
	c.setDefaults()
	if err := c.check(); err != nil {
		return "", err
	}
	if c.Mode != Guard {
		return "", errors.New("firewall: mode admit has no guard: your own table shuts the ports")
	}
	if c.Backend == BackendIptables {
		return "", errors.New("firewall: the guard can be printed for nft only, and the backend is iptables")
	}
	w := &nftText{Config: c, mark: fmt.Sprintf("%#08x", c.Mark)}
	w.line("# The guard, as \"spa-server guard --print\" writes it for a host that loads its rules from a file:")
	w.line("# include this file there, behind the flush. server.toml needs, under [firewall]: persist = \"file\"")
	w.line("# Print it anew when services, knock ports or [firewall] change.")
	w.line("table inet %s", guardTable)
	w.line("delete table inet %s", guardTable)
	w.open("table inet %s", guardTable)
	w.sets()
	w.chain(guardMarker, "")
	w.chain("confirm", "")
	w.ended()
	w.knock()
	w.guard()
	w.revive()
	w.receipt()
	w.hush()
	w.shut()
	return w.String(), nil
}

const (
	guardTable  = "spa"
	guardMarker = "sallyport" // an empty chain by which the table is known as ours
)

// nftText is nft's language, with what differs from guard to guard.
type nftText struct {
	Config
	strings.Builder
	mark  string
	depth int
}

func (w *nftText) line(format string, args ...any) {
	w.WriteString(strings.Repeat("\t", w.depth))
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

func (w *nftText) open(format string, args ...any) {
	w.line(format+" {", args...)
	w.depth++
}

func (w *nftText) shut() {
	w.depth--
	w.line("}")
}

// textFamilies are the words that differ between IPv4 and IPv6.
func textFamilies() []string { return []string{"ip", "ip6"} }

// digit is what our sets of a family have behind their names.
func digit(family string) string { return map[string]string{"ip": "4", "ip6": "6"}[family] }

func (w *nftText) sets() {
	w.set("guarded", "inet_proto . inet_service", portList(w.Guarded))
	w.set("cut", "inet_proto . inet_service", portList(w.Cut))
	addresses := map[string][]string{}
	for _, a := range w.Addresses {
		addresses[familyName(a)] = append(addresses[familyName(a)], normal(a).String())
	}
	address := func(f string) string { return "ipv" + digit(f) + "_addr" }
	for _, f := range textFamilies() {
		w.sized("grants"+digit(f), address(f)+" . inet_proto . inet_service", w.size)
	}
	for _, f := range textFamilies() {
		w.set("carried"+digit(f), address(f)+" . "+address(f)+" . inet_proto . inet_service . inet_service", nil)
	}
	for _, f := range textFamilies() {
		w.set("addresses"+digit(f), address(f), addresses[f])
	}
}

func familyName(a netip.Addr) string {
	if normal(a).Is4() {
		return "ip"
	}
	return "ip6"
}

func portList(ranges []spa.Ports) []string {
	var list []string
	all := holding{ports: ranges}
	all.each(func(e element) { list = append(list, fmt.Sprintf("%v . %d", e.proto, e.port)) })
	return list
}

func (w *nftText) set(name, kind string, elements []string) {
	w.open("set %s", name)
	w.line("type %s", kind)
	w.line("flags timeout")
	if len(elements) > 0 {
		w.line("elements = { %s }", strings.Join(elements, ", "))
	}
	w.shut()
}

func (w *nftText) sized(name, kind string, size uint32) {
	w.open("set %s", name)
	w.line("type %s", kind)
	w.line("size %d", size)
	w.line("flags timeout")
	w.shut()
}

func (w *nftText) chain(name, hook string, rules ...string) {
	w.open("chain %s", name)
	if hook != "" {
		w.line("type filter hook %s; policy accept;", hook)
	}
	for _, r := range rules {
		w.line("%s", r)
	}
	w.shut()
}

// list is rules; what is empty is none.
type list []string

func (l *list) add(rules ...string) {
	for _, r := range rules {
		if r != "" {
			*l = append(*l, strings.Join(strings.Fields(r), " "))
		}
	}
}

func (w *nftText) marked() string  { return "ct mark & " + w.mark + " == " + w.mark }
func (w *nftText) setMark() string { return "ct mark set ct mark | " + w.mark + " accept" }

// granted and carried are the keys of a packet of a family as our sets have them.
func granted(f, address, port string) string {
	return fmt.Sprintf("%s %s . meta l4proto . th %s @grants%s", f, address, port, digit(f))
}

func carried(f, remote, local, remotePort, localPort string) string {
	return fmt.Sprintf("%s %s . %s %s . meta l4proto . th %s . th %s @carried%s", f, remote, f, local, remotePort, localPort, digit(f))
}

func (w *nftText) ended() {
	var rules list
	if len(w.Cut) > 0 {
		for _, f := range textFamilies() {
			rules.add(
				granted(f, "saddr", "dport")+" return",
				carried(f, "saddr", "daddr", "sport", "dport")+" return",
			)
		}
		rules.add("drop")
	}
	w.chain("ended", "", rules...)
}

func (w *nftText) knock() {
	rules := list{"iif lo accept"}
	for _, k := range w.Knock {
		if !k.Shared {
			rules.add(fmt.Sprintf("fib daddr type { local, anycast } udp dport %d drop", k.Port))
		}
	}
	w.chain("knock", "prerouting priority -310", rules...)
}

func (w *nftText) guard() {
	rules := list{"iif lo accept"}
	for _, name := range w.Trusted {
		rules.add(fmt.Sprintf("iifname %q accept", name))
	}
	lasts := ""
	if len(w.Cut) > 0 {
		lasts = "meta l4proto . th dport != @cut "
		rules.add(
			"ct direction reply " + w.marked() + " meta l4proto . th dport @cut fib daddr type local jump ended",
		)
	}
	rules.add("ct direction reply accept")
	for _, f := range textFamilies() {
		rules.add(f + " daddr != @addresses" + digit(f) + " fib daddr type != { local, broadcast, anycast, multicast } accept")
	}
	rules.add(
		"meta l4proto != tcp meta l4proto != udp accept",
		"meta l4proto . th dport != @guarded accept",
		lasts+"ct state related "+w.marked()+" accept",
		lasts+"meta l4proto udp ct state established "+w.marked()+" accept",
		lasts+"tcp flags & (syn | ack) != syn ct state established "+w.marked()+" accept",
	)
	for _, f := range textFamilies() {
		flow := carried(f, "saddr", "daddr", "sport", "dport")
		rules.add("tcp flags & syn == 0 "+flow+" "+w.setMark(), "meta l4proto udp "+flow+" "+w.setMark())
	}
	for _, f := range textFamilies() {
		rules.add(granted(f, "saddr", "dport")+" "+w.setMark(), granted(f, "saddr", "dport")+" accept")
	}
	if w.Closed == Reject {
		rules.add("meta l4proto tcp reject with tcp reset", "reject with icmpx type port-unreachable")
	} else {
		rules.add("drop")
	}
	w.chain("guard", "prerouting priority -110", rules...)
}

func (w *nftText) revive() {
	rules := list{"oif lo accept"}
	for _, name := range w.Trusted {
		rules.add(fmt.Sprintf("oifname %q accept", name))
	}
	rules.add("meta l4proto . th sport != @guarded accept")
	for _, f := range textFamilies() {
		rules.add(granted(f, "daddr", "sport")+" "+w.setMark(), carried(f, "daddr", "saddr", "dport", "sport")+" "+w.setMark())
	}
	rules.add(
		"meta l4proto udp ct direction reply ct mark & "+w.mark+" != "+w.mark+" drop",
		"ct state new tcp flags & (syn | ack) != syn drop",
	)
	w.chain("revive", "output priority -110", rules...)
}

func (w *nftText) hush() {
	var rules list
	if len(w.Cut) > 0 {
		rules.add("oif lo accept")
		for _, name := range w.Trusted {
			rules.add(fmt.Sprintf("oifname %q accept", name))
		}
		rules.add("meta l4proto != tcp meta l4proto != udp accept")
		rules.add("meta l4proto . th sport != @cut accept")
		for _, f := range textFamilies() {
			rules.add(
				f+" saddr != @addresses"+digit(f)+" fib saddr type != local accept",
				granted(f, "daddr", "sport")+" accept",
				carried(f, "daddr", "saddr", "dport", "sport")+" accept",
			)
		}
		rules.add("tcp flags & rst == rst accept", "ct direction reply drop", w.marked()+" drop")
	}
	w.chain("hush", "postrouting priority 110", rules...)
}

func (w *nftText) receipt() {
	var rules list
	for _, k := range w.Knock {
		mark := ""
		if k.Shared {
			mark = "meta mark & " + w.mark + " == " + w.mark + " "
		}
		rules.add(fmt.Sprintf("%sudp sport %d notrack", mark, k.Port))
	}
	w.chain("receipt", "output priority -300", rules...)
}
