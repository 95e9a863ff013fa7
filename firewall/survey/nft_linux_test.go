package survey

import (
	"strings"
	"testing"
)

// inputChain returns a table that drops by default, with these rules.
func inputChain(rules ...string) string {
	return "table inet filter { chain input { type filter hook input priority 0; policy drop;\n" +
		strings.Join(rules, "\n") + "\n}\n}\n"
}

// expressionTests are rules of a table that drops, and the verdicts on a stranger's tcp/22.
var expressionTests = map[string]Verdict{
	"":                               Drops,
	"accept":                         Passes,
	"counter log prefix \"x\"":       Drops,
	"tcp dport 22 accept":            Passes,
	"tcp dport 23 accept":            Drops,
	"tcp dport != 23 accept":         Passes,
	"udp dport 22 accept":            Drops,
	"th dport 22 accept":             Passes,
	"tcp dport 20-30 accept":         Passes,
	"tcp dport 23-30 accept":         Drops,
	"tcp dport != 23-30 accept":      Passes,
	"tcp dport < 22 accept":          Drops,
	"tcp dport <= 22 accept":         Passes,
	"tcp dport > 21 accept":          Passes,
	"tcp dport >= 23 accept":         Drops,
	"tcp dport { 22, 80 } accept":    Passes,
	"tcp dport { 23, 80 } accept":    Drops,
	"tcp dport != { 23, 80 } accept": Passes,
	"tcp dport { 20-22, 80 } accept": Passes,
	"tcp dport { 23-40, 80 } accept": Drops,
	"tcp dport vmap { 22 : accept }": Passes,
	"tcp dport vmap { 23 : accept }": Drops,
	"tcp dport vmap { 20-21 : drop, 22 : accept, 23-30 : drop }":   Passes,
	"tcp dport vmap { 23 : accept, * : accept }":                   Passes,
	"meta l4proto . th dport { tcp . 22 } accept":                  Passes,
	"meta l4proto . th dport { udp . 22 } accept":                  Drops,
	"iifname . tcp dport { \"vs\" . 20-25 } accept":                Passes,
	"iifname . tcp dport { \"vs\" . 23-25 } accept":                Drops,
	"ip daddr . tcp dport { 192.0.2.0/24 . 20-25 } accept":         Passes,
	"ip daddr . tcp dport { 198.51.100.0/24 . 20-25 } accept":      Drops,
	"iifname \"vs\" accept":                                        Passes,
	"iifname \"v*\" accept":                                        Passes,
	"iifname \"eth*\" accept":                                      Drops,
	"iifname { \"eth0\", \"v*\" } accept":                          Passes,
	"iif \"vs\" accept":                                            Passes,
	"iif lo accept":                                                Drops,
	"oifname \"vs\" accept":                                        Drops,
	"ip daddr 192.0.2.1 accept":                                    Passes,
	"ip daddr 192.0.2.0/28 accept":                                 Passes,
	"ip daddr 198.51.100.0/24 accept":                              Drops,
	"ip6 daddr 2001:db8::1 accept":                                 Drops,
	"ip saddr 198.51.100.0/24 accept":                              Drops,
	"ip saddr != 198.51.100.0/24 accept":                           Passes,
	"ip saddr { 198.51.100.0/24, 203.0.113.7 } accept":             Drops,
	"ip saddr . tcp dport { 198.51.100.7 . 22 } accept":            Drops,
	"ip saddr vmap { 198.51.100.7 : accept }":                      Drops,
	"ip protocol tcp accept":                                       Passes,
	"meta nfproto ipv6 accept":                                     Drops,
	"meta protocol ip accept":                                      Passes,
	"meta pkttype host accept":                                     Passes,
	"meta pkttype { broadcast, multicast } accept":                 Drops,
	"meta mark 1 accept":                                           Drops,
	"meta mark set 1 meta mark 1 accept":                           Passes,
	"meta mark set 6 meta mark and 3 == 2 accept":                  Passes,
	"meta mark set 6 meta mark and 3 == 1 accept":                  Drops,
	"ct state new accept":                                          Passes,
	"ct state established,related accept":                          Drops,
	"ct state { established, related } accept":                     Drops,
	"ct state vmap { established : accept, new : accept }":         Passes,
	"ct state invalid,untracked accept":                            Drops,
	"ct direction original accept":                                 Passes,
	"ct direction reply accept":                                    Drops,
	"ct status dnat accept":                                        Drops,
	"meta l4proto tcp ct original proto-dst 22 accept":             Perhaps,
	"fib daddr type local accept":                                  Passes,
	"fib daddr type { broadcast, multicast } accept":               Drops,
	"fib saddr type local accept":                                  Drops,
	"fib saddr . iif oif missing accept":                           Drops,
	"fib saddr . iif oif exists accept":                            Passes,
	"tcp flags & (fin | syn | rst | ack) == syn accept":            Passes,
	"tcp flags & (fin | syn) == fin accept":                        Drops,
	"tcp flags syn accept":                                         Passes,
	"tcp sport 1024-65535 accept":                                  Passes,
	"tcp sport 22 accept":                                          Drops,
	"tcp option maxseg size 1-500 accept":                          Perhaps,
	"ip frag-off & 0x1fff != 0 accept":                             Drops,
	"ip ttl 64 accept":                                             Perhaps,
	"ether saddr 02:00:00:00:00:01 accept":                         Perhaps,
	"meta length 40-100 accept":                                    Perhaps,
	"meta hour \"09:00\"-\"17:00\" accept":                         Perhaps,
	"limit rate 5/second accept":                                   Passes,
	"limit rate over 5/second accept":                              Drops,
	"ct count 5 accept":                                            Passes,
	"ct count over 5 accept":                                       Drops,
	"quota 5 mbytes accept":                                        Passes,
	"quota over 5 mbytes accept":                                   Drops,
	"numgen random mod 2 0 accept":                                 Perhaps,
	"jhash ip saddr mod 2 0 accept":                                Perhaps,
	"socket transparent 1 accept":                                  Perhaps,
	"tcp dport 22 reject":                                          Drops,
	"accept comment \"let all in\"":                                Passes,
	"tcp dport 22 return":                                          Drops,
	"tcp dport 22 continue":                                        Drops,
	"ip saddr 203.0.113.7 meta mark set 7\nmeta mark 7 accept":     Drops, // only packets of that source are marked
	"tcp dport set 23":                                             Perhaps,
	"udp length 8 accept":                                          Drops,
	"meta mark set numgen random mod 2 meta mark 1 accept":         Perhaps,
	"meta mark set tcp dport map { 22 : 7, 23 : 8 } mark 7 accept": Passes,
	"meta mark set ip saddr map { 203.0.113.7 : 7 } mark 7 accept": Drops,
	"meta mark set ip ttl map { 64 : 7, 128 : 8 } mark 7 accept":   Perhaps,
	"ip ttl vmap { 64 : accept, 128 : drop }":                      Perhaps,
	"ip ttl . tcp dport { 64 . 23 } accept":                        Drops,
	"ip ttl . tcp dport { 64 . 22 } accept":                        Perhaps,
}

// TestExpressions: each expression is understood or may match.
func TestExpressions(t *testing.T) {
	h := host(t)
	for rule, want := range expressionTests {
		t.Run(rule, func(t *testing.T) {
			load(t, h, "nft", "flush ruleset\n"+inputChain(rule))
			if got := read(t, h).Judge(packet(t, "tcp/22", over4)); got.Verdict != want {
				t.Errorf("got %v at %v, want %v", got.Verdict, got.At, want)
			}
		})
	}
}
