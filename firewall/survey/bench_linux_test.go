package survey

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkJudge leads a packet past 1,000 rules about sources.
func BenchmarkJudge(b *testing.B) {
	var nft, saved strings.Builder
	saved.WriteString("*filter\n:INPUT DROP [0:0]\n")
	for i := range 1000 {
		fmt.Fprintf(&nft, "ip saddr 198.51.%d.%d tcp dport 23 drop\n", i/256, i%256)
		fmt.Fprintf(&saved, "-A INPUT -s 198.51.%d.%d/32 -p tcp -m tcp --dport 23 -j DROP\n", i/256, i%256)
	}
	saved.WriteString("COMMIT\n")
	for _, rules := range []rules{{"nft", inputChain(nft.String())}, {"iptables-nft-restore", saved.String()}} {
		b.Run(rules.program, func(b *testing.B) {
			h := host(b)
			load(b, h, rules.program, rules.text)
			r, p := read(b, h), packet(b, "tcp/22", over4)
			for b.Loop() {
				r.Judge(p)
			}
		})
	}
}
