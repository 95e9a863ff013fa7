package survey

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// onlyChange are the targets of iptables after which the next rule is read.
var onlyChange = []string{"LOG", "NFLOG", "ULOG", "AUDIT", "TRACE", "CONNMARK", "CONNSECMARK", "SECMARK", "CT",
	"NOTRACK", "MARK", "TCPMSS",
	"TOS", "DSCP", "ECN", "TTL", "HL", "SET", "CHECKSUM", "CLASSIFY", "TEE", "LED", "IDLETIMER",
	"RATEEST", "HMARK", "TCPOPTSTRIP"}

// act does what the target of a matching rule does.
func (r *savedRule) act(p *passage, match truth) []verdict {
	switch r.target {
	case "":
		return nil
	case "ACCEPT":
		return []verdict{{action: accepts}}
	case "DROP", "TARPIT", "STEAL":
		return []verdict{{action: drops}}
	case "REJECT":
		return []verdict{{action: drops, answer: r.answer()}}
	case "RETURN":
		return []verdict{{action: returns}}
	case "DNAT":
		return r.dnat(p, match)
	case "REDIRECT":
		return r.redirect(p, match)
	case "TPROXY":
		return r.tproxy(p, match)
	}
	if slices.Contains(onlyChange, r.target) {
		r.change(p, match)
		return nil
	}
	return r.call()
}

// call leads into a chain. An unknown target that is not a chain may do anything: see obey, which finds no chain.
func (r *savedRule) call() []verdict {
	if r.comesBack {
		return []verdict{{action: jumps, chain: r.target}}
	}
	return []verdict{{action: goes, chain: r.target}}
}

func (r *savedRule) answer() Answer {
	if slices.Contains(r.options["--reject-with"], "tcp-reset") {
		return Reset
	}
	return Unreachable
}

func (r *savedRule) change(p *passage, match truth) {
	switch r.target {
	case "NOTRACK":
		p.leaveUntracked(match)
	case "CT":
		if _, ok := r.options["--notrack"]; ok {
			p.leaveUntracked(match)
		}
	case "MARK":
		r.setMark(p, match)
	case "CONNMARK":
		if _, ok := r.options["--restore-mark"]; ok && p.mark != 0 {
			p.markKnown = maybe
		}
	}
}

func (r *savedRule) setMark(p *passage, match truth) {
	value, mask, ok := valueAndMask(strings.Join(r.options["--set-xmark"], ""))
	if !ok || match.and(p.reached) != yes {
		p.markKnown = maybe
		return
	}
	p.mark = p.mark&^mask ^ value
}

// leads reports whether the target leads packets elsewhere.
func (r *savedRule) leads() bool {
	return slices.Contains([]string{"DNAT", "REDIRECT", "TPROXY"}, r.target)
}

// dnat reads "--to-destination 198.51.100.5:80", or ":80". Anything else, such as a range, is an unknown place.
func (r *savedRule) dnat(p *passage, match truth) []verdict {
	text := r.option("--to-destination")
	to, err := netip.ParseAddrPort(text)
	if a, err2 := netip.ParseAddr(strings.Trim(text, "[]")); err != nil && err2 == nil {
		to = netip.AddrPortFrom(a, p.packet.Port)
	}
	if port, ok := strings.CutPrefix(text, ":"); ok {
		to = at(p.packet.To, port)
	}
	p.leadTo(to, match)
	return []verdict{{action: accepts}}
}

func (r *savedRule) redirect(p *passage, match truth) []verdict {
	to := netip.AddrPortFrom(p.self(), p.packet.Port)
	if text := r.option("--to-ports"); text != "" {
		to = at(p.self(), text)
	}
	p.leadTo(to, match)
	return []verdict{{action: accepts}}
}

// tproxy hands the packet to a socket, or drops it if there is none.
func (r *savedRule) tproxy(p *passage, match truth) []verdict {
	to := netip.AddrPortFrom(p.self(), p.packet.Port)
	if port := r.option("--on-port"); port != "" && port != "0" {
		to = at(p.self(), port)
	}
	p.handTo(to, match)
	return []verdict{{action: accepts}, {action: drops}}
}

// at returns an address with a port; invalid if port is not a single one.
func at(a netip.Addr, port string) netip.AddrPort {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, uint16(n))
}

func (r *savedRule) option(name string) string { return strings.Join(r.options[name], "") }
