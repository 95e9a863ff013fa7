package firewall

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sallyport/spa/lab"
)

// TestErrorsOfOtherFlows: ICMP errors about flows that do not concern a guarded port arrive, whether they are tracked
// or not: those of ports with other numbers, of the other protocol, and of other machines.
func TestErrorsOfOtherFlows(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		listed := map[string]string{"IPv4": "198.51.100.9", "IPv6": "2001:db8:1::9"}[f.name]
		s := k.guarded(t, func(c *Config) {
			guarding("udp/5300", "tcp/6000-6010", "udp/6100-6110")(c)
			c.Targets = []Target{{Addresses: []netip.Addr{netip.MustParseAddr(listed)}, Ports: rangesOf("udp/5400")}}
		})
		inner := s.behind()
		hears := func() {
			t.Helper()
			for _, from := range []struct {
				host       *lab.Host
				addr, port string
			}{{s.gw, f.gateway, "4000"}, {s.gw, f.gateway, "22"}, {s.gw, f.gateway, "6005"}, {s.gw, f.gateway, "5400"},
				{inner, innerAddr[f.name], "5300"}} {
				s.hearsError(from.host, net.JoinHostPort(from.addr, from.port), net.JoinHostPort(f.alice, "7999"))
			}
		}
		hears()
		s.another(func(c *nft.Conn) {
			chainOf(c, nft.ChainTypeFilter, nft.ChainHookPrerouting, -300, &expr.Notrack{})
		})
		hears()
	})
}

// hearsError waits for an error about a datagram: hosts send only so many a second.
func (s *site) hearsError(host *lab.Host, from, to string) {
	s.Helper()
	var c net.Conn
	s.must(host.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}
		c, err = d.Dial("udp", to)
		return err
	}))
	defer c.Close()
	lab.Eventually(s, "an error about a datagram from "+from, func() bool {
		_, err := c.Write([]byte("hello"))
		if err == nil {
			s.must(c.SetReadDeadline(time.Now().Add(silence)))
			_, err = c.Read(make([]byte, 10))
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}
