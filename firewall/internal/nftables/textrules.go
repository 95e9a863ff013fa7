package nftables

import (
	"fmt"
	"strings"

	"sallyport/firewall/internal/guard"
)

// textChain is a chain in nft's language.
type textChain struct {
	name, hook string
	rules      list
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

// chains are the guard. Those that are jumped to stand before those that jump.
func (w *text) chains() []textChain {
	chains := []textChain{
		{markerChain, "", nil},
		{"refused", "", w.refused()},
		{"closed", "", w.closed()},
		{"quoted", "", w.quoted()},
		{"ended", "", w.ended()},
		{"confirm", "", nil},
		{"links", "", w.links()},
		{"begun", "", w.begun()},
		{"door", "", w.door()},
		{"receipt", "filter hook output priority -300", w.receipt()},
		{"knock", "filter hook prerouting priority -310", w.knock()},
		{"guard", "filter hook prerouting priority -110", w.guard()},
		{"arrive", "filter hook input priority -310", w.arrive()},
		{"revive", "filter hook output priority -110", w.revive()},
		{"passing", "filter hook forward priority -110", w.passing()},
		{"hush", "filter hook postrouting priority 110", w.hush()},
	}
	if w.Closed == guard.Reject {
		chains = append(chains, textChain{"claim", "nat hook prerouting priority -101", w.claim()})
	}
	return chains
}

func (w *text) marked() string    { return "ct mark & " + w.mark + " == " + w.mark }
func (w *text) unmarked() string  { return "ct mark & " + w.mark + " != " + w.mark }
func (w *text) clearMark() string { return fmt.Sprintf("ct mark set ct mark & %#08x", ^w.Mark) }
func (w *text) setMark() string   { return "ct mark set ct mark | " + w.mark }

// words are those for the peer's and our own end of a packet.
type words struct{ peer, own, peerPort, ownPort, device string }

var (
	inbound  = words{"saddr", "daddr", "sport", "dport", "iif"}
	outbound = words{"daddr", "saddr", "dport", "sport", "oif"}
)

func (e words) source(f string) string {
	return fmt.Sprintf("%s %s . meta l4proto . th %s", f, e.peer, e.ownPort)
}

func (e words) sourceAndTarget(f string) string {
	return fmt.Sprintf("%s %s . %[1]s %[3]s . meta l4proto . th %[4]s", f, e.peer, e.own, e.ownPort)
}

func (e words) target(f string) string {
	return fmt.Sprintf("%s %s . meta l4proto . th %s", f, e.own, e.ownPort)
}

func (e words) linkAndSource() string { return e.device + " . " + e.source("ip6") }

func (e words) carried(f string) string {
	return fmt.Sprintf("%s %s . %[1]s %[3]s . meta l4proto . th %[4]s . th %[5]s @carried%[6]s", f, e.peer, e.own,
		e.peerPort, e.ownPort, digit(f))
}

func (e words) update(set, key string) string {
	return fmt.Sprintf("update @%s { %s timeout %s }", set, key, "7d")
}

func (e words) meet(f string) string { return e.update("met"+digit(f), e.source(f)) }

func (w *text) admit(e words, f string) string { return e.meet(f) + " " + w.setMark() }

func (w *text) eachGrant(e words, do func(f, granted string)) {
	for _, f := range textFamilies() {
		here := ""
		if len(w.Targets) > 0 {
			do(f, e.sourceAndTarget(f)+" @reach"+digit(f))
			here = e.target(f) + " != @targets" + digit(f) + " "
		}
		do(f, here+e.source(f)+" @grants"+digit(f))
	}
	here := ""
	if len(w.Targets) > 0 {
		here = e.target("ip6") + " != @targets6 "
	}
	do("ip6", here+e.linkAndSource()+" @near")
}

const otherProtocols = "meta l4proto != tcp meta l4proto != udp accept"

func (w *text) refused() (rules list) {
	if w.Closed == guard.Reject {
		rules.add("meta nfproto ipv6 rt type 0 rt seg-left != 0 accept", "meta nfproto ipv6 rt type 3 drop",
			"meta nfproto ipv6 rt type 4 drop")
		rules.add("meta l4proto tcp reject with tcp reset", "meta nfproto ipv6 meta l4proto udp @th,48,16 0 drop",
			"meta l4proto udp reject with icmpx type port-unreachable")
	}
	rules.add("drop")
	return rules
}

func (w *text) closed() (rules list) {
	if w.Closed == guard.Reject {
		rules.add(
			"meta pkttype != host drop",
			"ct state new fib daddr type local meta mark set meta mark | "+w.mark+" accept",
			"fib daddr type local goto refused",
			"fib daddr type unicast goto refused",
		)
	}
	rules.add("drop")
	return rules
}

func (w *text) quoted() (rules list) {
	other := "meta nfproto ipv4"
	for _, t := range quotingTypes {
		other += fmt.Sprintf(" @th,0,8 != %d", t)
	}
	rules.add(other+" return", "meta nfproto ipv6 @th,0,8 >= 128 return")
	rules.add("meta nfproto ipv4 @th,64,8 & 0xf != 5 drop")
	known := "meta nfproto ipv6"
	for _, p := range guard.LastHeaders {
		known += fmt.Sprintf(" @th,112,8 != %d", p)
	}
	rules.add(known + " drop")
	for _, p := range w.EveryPort() {
		ports := func(bits int) string {
			if p.Low == p.High {
				return fmt.Sprintf("@th,%d,16 %d", bits, p.Low)
			}
			return fmt.Sprintf("@th,%d,16 >= %d @th,%[1]d,16 <= %[3]d", bits, p.Low, p.High)
		}
		rules.add(
			fmt.Sprintf("meta nfproto ipv4 @th,136,8 %d %s drop", p.Proto, ports(224)),
			fmt.Sprintf("meta nfproto ipv6 @th,112,8 %d %s drop", p.Proto, ports(384)),
		)
	}
	return rules
}

func (w *text) ended() (rules list) {
	if len(w.Cut) == 0 {
		return nil
	}
	for _, f := range textFamilies() {
		rules.add(inbound.carried(f) + " return")
	}
	w.eachGrant(inbound, func(f, granted string) { rules.add(granted + " " + inbound.meet(f) + " return") })
	rules.add("drop")
	return rules
}

func (w *text) links() (rules list) {
	key := inbound.linkAndSource()
	link := inbound.update("linked", key) + " return"
	rules.add(key+" @near "+link, inbound.carried("ip6")+" "+link, key+" @linked "+link, "goto closed")
	return rules
}

func (w *text) begun() (rules list) {
	rules.add("ct state untracked return")
	w.eachGrant(outbound, func(f, granted string) { rules.add(granted + " " + w.admit(outbound, f) + " return") })
	for _, f := range textFamilies() {
		rules.add(outbound.carried(f) + " " + w.admit(outbound, f) + " return")
	}
	if len(w.Cut) > 0 {
		rules.add(w.marked() + " tcp flags & rst == rst return")
		for _, f := range textFamilies() {
			rules.add("meta l4proto . th sport @cut " + outbound.source(f) + " @met" + digit(f) + " drop")
		}
	}
	rules.add(w.marked() + " return")
	if w.Closed == guard.Reject {
		rules.add("ct state invalid tcp flags & (fin | syn | rst) == rst return", "ct direction reply tcp flags & (fin | "+
			"syn | rst) == rst return")
	}
	for _, f := range textFamilies() {
		rules.add(
			"ct direction reply meta l4proto udp "+outbound.meet(f)+" drop",
			"meta l4proto udp "+outbound.source(f)+" @met"+digit(f)+" "+outbound.meet(f)+" drop",
		)
	}
	rules.add(
		"ip6 daddr fe80::/10 ct state new "+outbound.update("linked", outbound.linkAndSource()),
		"ct direction original ct state new meta l4proto udp "+w.setMark()+" return",
		"ct direction original ct state new tcp flags & (fin | syn | rst | ack) == syn "+w.setMark()+" return",
		"drop",
	)
	return rules
}

func (w *text) door() (rules list) {
	rules.add("ip6 saddr fe80::/10 jump links")
	lasts := ""
	if len(w.Cut) > 0 {
		lasts = "meta l4proto . th dport != @cut "
	}
	rules.add(
		"meta l4proto udp ct direction reply "+w.marked()+" accept",
		"tcp flags & (syn | ack) != syn ct direction reply "+w.marked()+" accept",
		lasts+"meta l4proto udp ct state established "+w.marked()+" accept",
		lasts+"tcp flags & (syn | ack) != syn ct state established "+w.marked()+" accept",
	)
	rules.add(w.carried()...)
	w.eachGrant(inbound, func(f, granted string) {
		rules.add(granted+" "+w.admit(inbound, f)+" accept",
			granted+" accept")
	})
	rules.add("goto closed")
	return rules
}

// carried are rules for what a first load carries.
func (w *text) carried() (rules list) {
	for _, f := range textFamilies() {
		flow := inbound.carried(f) + " " + w.admit(inbound, f) + " accept"
		rules.add("tcp flags & syn == 0 "+flow, "meta l4proto udp "+flow)
	}
	return rules
}

func (w *text) receipt() (rules list) {
	for _, k := range w.Knock {
		mark := ""
		if k.Shared {
			mark = "meta mark & " + w.mark + " == " + w.mark + " "
		}
		rules.add(fmt.Sprintf("%sudp sport %d notrack", mark, k.Port))
	}
	return rules
}

func (w *text) knock() (rules list) {
	for _, k := range w.Knock {
		if !k.Shared {
			for _, ours := range []string{"local", "anycast"} {
				rules.add(fmt.Sprintf("udp dport %d fib daddr type %s notrack", k.Port, ours))
			}
		}
	}
	return rules
}

func (w *text) trusted(names ...string) (rules list) {
	for _, name := range w.Trusted {
		for _, end := range names {
			rules.add(fmt.Sprintf("%s %q accept", end, name))
		}
	}
	return rules
}

func (w *text) quotedJumps(condition string) (rules list) {
	for _, p := range []string{"icmp", "ipv6-icmp"} {
		rules.add(
			condition+"meta l4proto "+p+" ct state invalid,untracked jump quoted",
			condition+"meta l4proto "+p+" ct state related "+w.unmarked()+" jump quoted",
		)
	}
	return rules
}

func (w *text) guard() (rules list) {
	rules.add("iif lo accept")
	rules.add(w.trusted("iifname")...)
	for _, ours := range []string{"local", "anycast"} {
		rules.add("meta l4proto . th sport @guarded fib saddr type " + ours +
			" fib daddr type != broadcast fib daddr type != multicast drop")
	}
	if len(w.Targets) > 0 {
		for _, f := range textFamilies() {
			rules.add(outbound.target(f) + " @targets" + digit(f) +
				" ct state invalid,new,untracked fib saddr . iif oif missing drop")
		}
	}
	rules.add(w.quotedJumps("fib daddr type local ")...)
	rules.add(otherProtocols, "ct state new,related ct direction original "+w.marked()+" "+w.clearMark())
	for _, f := range textFamilies() {
		rules.add(inbound.target(f) + " @targets" + digit(f) + " goto door")
	}
	rules.add(
		"fib daddr type != local fib daddr type != broadcast fib daddr type != anycast fib daddr type != multicast accept",
		"meta l4proto . th dport != @guarded accept",
		"goto door",
	)
	return rules
}

func (w *text) claim() (rules list) {
	mark := "meta mark & " + w.mark + " == " + w.mark
	rules.add(mark+" meta l4proto tcp dnat to :0", mark+" meta l4proto udp dnat to :udp dport")
	return rules
}

func (w *text) goesOn(f, condition string) (rules list) {
	if len(w.Cut) > 0 {
		rules.add(condition + "meta l4proto . th dport @cut " + inbound.source(f) + " @met" + digit(f) + " jump ended")
	}
	family := "meta nfproto " + map[string]string{"ip": "ipv4", "ip6": "ipv6"}[f] + " "
	rules.add(
		condition+family+"meta l4proto udp "+w.marked()+" accept",
		condition+family+"tcp flags & (syn | ack) != syn "+w.marked()+" accept",
		condition+family+"meta l4proto tcp ct state new "+w.marked()+" accept",
	)
	return rules
}

func (w *text) arrive() (rules list) {
	rules.add("iif lo accept")
	rules.add(w.trusted("iifname")...)
	rules.add(w.quotedJumps("")...)
	rules.add(otherProtocols)
	if w.Closed == guard.Reject {
		rules.add("meta mark & " + w.mark + " == " + w.mark + " " + w.unmarked() + " ct state new th dport != 0 goto refused")
	}
	if !w.TPROXY {
		const handed = "meta skuid != 4294967295 socket transparent 1 goto refused"
		rules.add("meta l4proto udp "+handed, "tcp flags & (syn | ack) == syn "+handed,
			"meta l4proto tcp ct state invalid,new "+handed)
	}
	for _, f := range textFamilies() {
		rules.add(w.goesOn(f, "")...)
	}
	rules.add(w.carried()...)
	w.eachGrant(inbound, func(f, granted string) {
		rules.add(granted+" "+w.admit(inbound, f)+" accept",
			granted+" accept")
	})
	rules.add("meta l4proto . th dport != @guarded accept", "goto refused")
	return rules
}

func (w *text) revive() (rules list) {
	rules.add("oif lo accept")
	rules.add(w.trusted("oifname")...)
	rules.add("meta l4proto . th sport @guarded jump begun")
	return rules
}

func (w *text) passing() (rules list) {
	if w.Closed == guard.Reject {
		rules.add("meta mark & " + w.mark + " == " + w.mark + " " + w.unmarked() + " ct state new drop")
	}
	if len(w.Targets) == 0 {
		return rules
	}
	rules.add(w.trusted("iifname", "oifname")...)
	for _, f := range textFamilies() {
		target := inbound.target(f) + " @targets" + digit(f)
		rules.add(w.quotedJumps(f + " daddr @addresses" + digit(f) + " ")...)
		rules.add(inbound.sourceAndTarget(f) + " @reach" + digit(f) + " accept")
		rules.add(w.goesOn(f, target+" ")...)
		rules.add(target + " drop")
	}
	for _, f := range textFamilies() {
		own := outbound.target(f) + " @targets" + digit(f)
		unmarked := own + " ct state new " + w.unmarked()
		rules.add(
			unmarked+` meta iifkind "bridge" meta oifkind "bridge" drop`,
			own+" jump begun",
		)
	}
	return rules
}

func (w *text) hush() (rules list) {
	rules.add("oif lo accept")
	rules.add(w.trusted("oifname")...)
	rules.add(otherProtocols, "ct status snat,dnat meta l4proto . th sport @guarded fib saddr type local jump begun")
	if len(w.Cut) == 0 {
		return rules
	}
	rules.add("meta l4proto . th sport != @cut accept")
	for _, f := range textFamilies() {
		rules.add(
			f+" saddr != @addresses"+digit(f)+" fib saddr type != local accept",
			outbound.carried(f)+" accept",
		)
	}
	w.eachGrant(outbound, func(_, granted string) { rules.add(granted + " accept") })
	rules.add("tcp flags & rst == rst accept", "ct direction reply drop")
	for _, f := range textFamilies() {
		rules.add(w.marked() + " " + outbound.source(f) + " @met" + digit(f) + " drop")
	}
	return rules
}

// quotingTypes are those of ICMP errors (RFC 792).
var quotingTypes = []byte{3, 4, 5, 11, 12}
