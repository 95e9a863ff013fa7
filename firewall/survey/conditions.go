package survey

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sallyport/keys/service"
)

// test reports whether a condition holds, before negation, and whether that depends on the sender's address.
type test func(p *passage, c condition) (truth, bool)

// conditions are the options of iptables matches. A match that is missing here may or may not hold.
var conditions = map[string]test{
	"-m": module, "-p": protocol, "-f": never,
	"-s": bySource, "--src-range": bySourceRange, "--match-set": matchSet,
	"-d": destination, "--dst-range": destinationRange,
	"-i": incoming, "-o": outgoing,
	"--dport": ports, "--dports": ports, "--destination-ports": ports, "--ports": ports,
	"--sport": senderPorts, "--sports": senderPorts, "--source-ports": senderPorts,
	"--tcp-flags": tcpFlags, "--syn": tcpSyn,
	"--ctstate": state, "--state": state, "--ctdir": direction, "--mark": mark,
	"--dst-type": destinationType, "--src-type": sourceType, "--pkt-type": packetType,
	"--limit": always, "--hashlimit-upto": always, "--hashlimit-above": never,
	"--connlimit-upto": always, "--connlimit-above": never, // for a flow's first packet
	"--set": always, "--update": recently, "--rcheck": recently, "--remove": recently,
	"--invert": invert, "--pol": ipsec, "--dir": always, "--helper": never,
	"--physdev-is-bridged": never, "--uid-owner": never, "--gid-owner": never,
	"--comment": always, "--limit-burst": always, "--name": always, "--seconds": always,
	"--hitcount": always, "--mask": always,
	"--rsource": always, "--rdest": always, "--reap": always, "--rttl": always, "--limit-iface-in": always,
	"--loose": always, "--validmark": always, "--accept-local": always, "--connlimit-mask": always,
	"--connlimit-saddr": always,
	"--hashlimit-burst": always, "--hashlimit-mode": always, "--hashlimit-name": always, "--hashlimit-srcmask": always,
	"--hashlimit-dstmask": always, "--hashlimit-htable-size": always, "--hashlimit-htable-max": always,
	"--hashlimit-htable-expire": always, "--hashlimit-htable-gcinterval": always, "--hashlimit-rate-match": always,
}

// understood are the matches whose deciding options are all in conditions.
var understood = []string{"tcp", "udp", "multiport", "conntrack", "state", "comment", "limit",
	"hashlimit", "connlimit", "recent",
	"addrtype", "mark", "connmark", "set", "iprange", "pkttype", "rpfilter", "policy", "physdev", "owner", "helper",
	"icmp", "icmp6", "udplite", "sctp", "dccp", "esp", "ah"} // from icmp on they stand beside -p, which fails first

func always(*passage, condition) (truth, bool) { return yes, false }
func never(*passage, condition) (truth, bool)  { return no, false }

// headers are matches of IPv6 extension headers, which the first packet of a flow does not have.
var headers = []string{"rt", "frag", "hbh", "dst", "mh"}

// module holds for a match that does nothing without an option; any other may or may not hold.
func module(_ *passage, c condition) (truth, bool) {
	if slices.Contains(headers, c.arg()) {
		return no, false
	}
	if slices.Contains(understood, c.arg()) {
		return yes, false
	}
	return maybe, false
}

// arg returns the first argument.
func (c condition) arg() string {
	if len(c.args) == 0 {
		return ""
	}
	return c.args[0]
}

func protocol(p *passage, c condition) (truth, bool) {
	switch c.arg() {
	case "all", "0", p.packet.Proto.String(), strconv.Itoa(int(p.packet.Proto)):
		return yes, false
	}
	return no, false
}

// bySource is a condition on the sender's address: no rule names that of an outsider.
func bySource(p *passage, c condition) (truth, bool) {
	prefix, err := netip.ParsePrefix(c.arg())
	switch {
	case !p.packet.From.IsValid():
		return no, err != nil || !nobodys(prefix.Addr().AsSlice(), p.v4())
	case err != nil:
		return maybe, false
	}
	return certain(prefix.Contains(p.packet.From)), false
}

func bySourceRange(p *passage, c condition) (truth, bool) {
	if !p.packet.From.IsValid() {
		return no, true
	}
	return inAddressRange(p.packet.From, c.arg()), false
}

// inAddressRange reports whether an address is in a range such as "192.0.2.1-192.0.2.9".
func inAddressRange(a netip.Addr, text string) truth {
	low, high, _ := strings.Cut(text, "-")
	from, err := netip.ParseAddr(low)
	to, err2 := netip.ParseAddr(high)
	if err != nil || err2 != nil {
		return maybe
	}
	return certain(!a.Less(from) && !to.Less(a))
}

// matchSet is about an ipset: "blocked src". The set's addresses are unknown here.
func matchSet(p *passage, c condition) (truth, bool) {
	if !p.packet.From.IsValid() && len(c.args) == 2 && strings.Contains(c.args[1], "src") {
		return no, true
	}
	return maybe, false
}

// recently matches senders that were seen before; an outsider was not.
func recently(p *passage, _ condition) (truth, bool) {
	if p.packet.From.IsValid() {
		return maybe, false
	}
	return no, false
}

func destination(p *passage, c condition) (truth, bool) {
	if prefix, err := netip.ParsePrefix(c.arg()); err == nil {
		return certain(prefix.Contains(p.packet.To)), false
	}
	if a, err := netip.ParseAddr(c.arg()); err == nil {
		return certain(a == p.packet.To), false
	}
	return maybe, false
}

func destinationRange(p *passage, c condition) (truth, bool) {
	return inAddressRange(p.packet.To, c.arg()), false
}

func incoming(p *passage, c condition) (truth, bool) {
	return certain(interfaceIs(p.link.Name, c.arg())), false
}

func outgoing(p *passage, c condition) (truth, bool) {
	if p.out == "" {
		return maybe, false
	}
	return certain(interfaceIs(p.out, c.arg())), false
}

// interfaceIs compares a name with a pattern: a name, or the beginning of one such as "eth+".
func interfaceIs(name, pattern string) bool {
	if begin, ok := strings.CutSuffix(pattern, "+"); ok {
		return strings.HasPrefix(name, begin)
	}
	return name == pattern
}

func ports(p *passage, c condition) (truth, bool) { return portIn(p.packet.Port, c.arg()), false }

func senderPorts(_ *passage, c condition) (truth, bool) { return portIn(senderPort, c.arg()), false }

// senderPort is an ephemeral port, such as a client's.
const senderPort = 53211

// portIn reports whether a port is in a list such as "22,80:90".
func portIn(port uint16, set string) truth {
	for part := range strings.SplitSeq(set, ",") {
		low, high, isRange := strings.Cut(part, ":")
		if !isRange {
			high = low
		}
		from, err := strconv.ParseUint(low, 10, 16)
		to, err2 := strconv.ParseUint(high, 10, 16)
		if err != nil || err2 != nil {
			return maybe
		}
		if uint64(port) >= from && uint64(port) <= to {
			return yes
		}
	}
	return no
}

// portOptions are the conditions that compare the destination's port.
var portOptions = []string{"--dport", "--dports", "--destination-ports", "--ports"}

func (r *savedRule) says(said []uint16, _ setReader) []uint16 {
	for _, c := range r.conditions {
		if !slices.Contains(portOptions, c.name) {
			continue
		}
		for _, text := range strings.FieldsFunc(c.arg(), func(r rune) bool { return r == ',' || r == ':' }) {
			if n, err := strconv.ParseUint(text, 10, 16); err == nil {
				said = append(said, uint16(n))
			}
		}
	}
	return said
}

// tcpFlags is "--tcp-flags FIN,SYN,RST,ACK SYN": of the first list, exactly those of the second are set.
func tcpFlags(p *passage, c condition) (truth, bool) {
	if len(c.args) != 2 || p.packet.Proto != service.TCP {
		return maybe, false
	}
	looked := strings.Split(c.args[0], ",")
	want := strings.Split(c.args[1], ",")
	has := func(flags []string) bool { return slices.Contains(flags, "SYN") || slices.Contains(flags, "ALL") }
	others := slices.ContainsFunc(want, func(f string) bool { return f != "SYN" && f != "NONE" })
	return certain(!others && has(looked) == has(want)), false
}

func tcpSyn(p *passage, _ condition) (truth, bool) {
	return certain(p.packet.Proto == service.TCP), false
}

// state is about the connection: NEW, UNTRACKED, or the pseudo-state DNAT.
func state(p *passage, c condition) (truth, bool) {
	states := strings.Split(c.arg(), ",")
	result := p.hasState(states)
	if slices.Contains(states, "DNAT") {
		result = max(result, p.redirect)
	}
	return result, false
}

func (p *passage) hasState(states []string) truth {
	switch {
	case !p.tracking:
		return certain(slices.Contains(states, "INVALID"))
	case p.untracked == yes:
		return certain(slices.Contains(states, "UNTRACKED"))
	case p.untracked == maybe:
		return maybe
	}
	return certain(slices.Contains(states, "NEW"))
}

func direction(_ *passage, c condition) (truth, bool) { return certain(c.arg() == "ORIGINAL"), false }

// mark compares the mark of the packet, or of its connection, which is new and has none.
func mark(p *passage, c condition) (truth, bool) {
	value, mask, ok := valueAndMask(c.arg())
	switch {
	case !ok:
		return maybe, false
	case c.module == "connmark":
		return certain(value == 0), false
	case p.markKnown != yes:
		return maybe, false
	}
	return certain(p.mark&mask == value), false
}

// valueAndMask reads "0x1/0xff" or "0x1".
func valueAndMask(text string) (value, mask uint32, ok bool) {
	first, second, has := strings.Cut(text, "/")
	v, err := strconv.ParseUint(first, 0, 32)
	if err != nil {
		return 0, 0, false
	}
	if !has {
		return uint32(v), ^uint32(0), true
	}
	m, err := strconv.ParseUint(second, 0, 32)
	return uint32(v), uint32(m), err == nil
}

func destinationType(p *passage, c condition) (truth, bool) {
	kind := "LOCAL"
	if !p.local {
		kind = "UNICAST"
	}
	return certain(slices.Contains(strings.Split(c.arg(), ","), kind)), false
}

func sourceType(_ *passage, c condition) (truth, bool) {
	return certain(slices.Contains(strings.Split(c.arg(), ","), "UNICAST")), false
}

func packetType(_ *passage, c condition) (truth, bool) { return certain(c.arg() == "unicast"), false }

// invert is an option of rpfilter, where it matches packets whose sender is routed by another interface.
func invert(_ *passage, c condition) (truth, bool) { return certain(c.module != "rpfilter"), false }

func ipsec(_ *passage, c condition) (truth, bool) { return certain(c.arg() == "none"), false }
