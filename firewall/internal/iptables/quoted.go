package iptables

import (
	"fmt"
	"slices"
	"strings"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
)

// ICMP errors for sockets behind guarded ports: see nftables' quotedJumps. They are checked before DNAT may lead them
// to another machine, and where they are delivered or forwarded to a target.

// eachError calls do with the part of a rule that matches ICMP errors and jumps. The kernel delivers no other ICMP
// messages to sockets of TCP or UDP.
func (s *script) eachError(do func(does string)) {
	proto, match, types := "icmp", "icmp --icmp-type", []int{3, 4, 5, 11, 12}
	if s.v6 {
		proto, match, types = "ipv6-icmp", "icmp6 --icmpv6-type", []int{1, 2, 3, 4}
	}
	for _, kind := range types {
		do(fmt.Sprintf("-p %s -m %s %d -j %s", proto, match, kind, chainError))
	}
}

// errors adds the jumps for ICMP errors, and the decision on them.
func (s *script) errors() {
	s.eachError(func(does string) {
		s.add(chainArrive, "%s", does)
		for _, t := range s.r.Targets {
			for _, a := range t.Addresses {
				if s.ours(a) {
					s.add(chainPassing, "-d %s %s", a, does)
				}
			}
		}
	})
	s.add(chainError, "-m conntrack --ctstate INVALID,UNTRACKED -g %s", chainQuoted)
	s.add(chainError, "-m conntrack --ctstate RELATED %s -g %s", s.unmarked(), chainQuoted)
}

// quoted drops ICMP errors that belong to no admitted flow and quote a packet from a guarded port: see nftables'
// quotedRules. If rules cannot match inside a packet, it drops all such errors.
func (s *script) quoted() {
	if !s.r.quotes {
		s.add(chainQuoted, "-j DROP")
		return
	}
	drop := func(match, test string) { s.add(chainQuoted, `%s--u32 "%s" -j DROP`, match, test) }
	const not, is = "-m u32 ! ", "-m u32 "
	proto, port := quotes4+"16>>16&0xFF", quotes4+"28>>16"
	if s.v6 {
		proto, port = "52>>8&0xFF", "88>>16"
		drop(not, "4>>8&0xFF=58") // an extension header before the error
		drop(not, proto+"="+joined(guard.LastHeaders))
	} else {
		drop(not, quotes4+"8>>24&0xF=5") // options
	}
	from := func(p service.Ports) string {
		return fmt.Sprintf("%s=%d&&%s=%d:%d", proto, p.Proto, port, p.Low, p.High)
	}
	for _, p := range s.r.Guarded {
		drop(is, from(p))
	}
	for _, t := range s.r.Targets {
		for _, p := range t.Ports {
			for _, a := range t.Addresses {
				if s.ours(a) && !slices.Contains(s.r.Guarded, p) {
					drop(fmt.Sprintf("-d %s %s", a, is), from(p))
				}
			}
		}
	}
}

// quotes4 is the u32 offset of an ICMP message, after an IPv4 header of any length.
const quotes4 = "0>>22&0x3C@"

func joined(numbers []byte) string {
	words := make([]string, 0, len(numbers))
	for _, n := range numbers {
		words = append(words, fmt.Sprint(n))
	}
	return strings.Join(words, ",")
}
