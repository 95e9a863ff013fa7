package firewall

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestErrorsOfOtherFlows: ICMP errors about flows that do not concern a guarded port arrive: those of ports with other
// numbers, of the other protocol, and of other machines.
func TestErrorsOfOtherFlows(t *testing.T) {
	everywhere(t, func(t *testing.T, k kind, f sides) {
		s := k.guarded(t, guarding("udp/5300", "tcp/6000-6010"))
		inner := s.behind()
		for _, from := range []struct {
			host       *lab.Host
			addr, port string
		}{{s.gw, f.gateway, "4000"}, {s.gw, f.gateway, "22"}, {s.gw, f.gateway, "6005"},
			{inner, innerAddr[f.name], "5300"}} {
			addr := net.JoinHostPort(from.addr, from.port)
			var c net.Conn
			s.must(from.host.Do(func() (err error) {
				d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))}
				c, err = d.Dial("udp", net.JoinHostPort(f.alice, "7999"))
				return err
			}))
			lab.Eventually(t, "an error about a datagram from "+addr, func() bool { // hosts send only so many a second
				_, err := c.Write([]byte("hello"))
				if err == nil {
					s.must(c.SetReadDeadline(time.Now().Add(silence)))
					_, err = c.Read(make([]byte, 10))
				}
				return errors.Is(err, syscall.ECONNREFUSED)
			})
			c.Close()
		}
	})
}
