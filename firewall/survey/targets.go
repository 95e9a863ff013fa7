package survey

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// onlyChange are the targets of iptables after which the next rule is read.
var onlyChange = []string{"LOG", "NFLOG", "ULOG", "AUDIT", "TRACE", "CONNMARK", "CONNSECMARK", "SECMARK", "CT", "NOTRACK", "MARK", "TCPMSS",
	"TOS", "DSCP", "ECN", "TTL", "HL", "SET", "CHECKSUM", "CLASSIFY", "TEE", "LED", "IDLETIMER", "RATEEST", "HMARK", "TCPOPTSTRIP"}

// act is what the target of a rule that matches does.
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
	}
	if slices.Contains(onlyChange, r.target) {
		r.change(p, match)
		return nil
	}
	return r.call()
}

// call leads into a chain. A target that is neither known here nor a chain may do anything: see
// obey, which finds no chain.
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
	if !ok || match != yes {
		p.markKnown = maybe
		return
	}
	p.mark = p.mark&^mask ^ value
}

// dnat reads "--to-destination 198.51.100.5:80".
func (r *savedRule) dnat(p *passage, match truth) []verdict {
	text := strings.Join(r.options["--to-destination"], "")
	to, err := netip.ParseAddrPort(text)
	if err != nil {
		var a netip.Addr
		if a, err = netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
			to = netip.AddrPortFrom(a, p.packet.Port)
		}
	}
	if err != nil {
		match = min(match, maybe)
	}
	p.leadTo(to, match)
	return []verdict{{action: accepts}}
}

func (r *savedRule) redirect(p *passage, match truth) []verdict {
	port := p.packet.Port
	if text := strings.Join(r.options["--to-ports"], ""); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			match = min(match, maybe)
		}
		port = uint16(n)
	}
	p.leadTo(netip.AddrPortFrom(p.packet.To, port), match)
	return []verdict{{action: accepts}}
}
