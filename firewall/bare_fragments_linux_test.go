package firewall

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"sallyport/firewall/internal/guard"
	"sallyport/spa/lab"
)

// TestBareGuardLetsFragmentsPass: without connection tracking, fragments are not reassembled before the guard, and
// only the first fragment of a datagram has the ports.
func TestBareGuardLetsFragmentsPass(t *testing.T) {
	everyFamily(t, func(t *testing.T, f sides) {
		s := newSite(t, func(c *Config) { c.Guarded = append(c.Guarded, ports("udp/5000")) })
		// Of so long a fragment only the headers are contiguous, as in packets from a network card.
		s.must(errors.Join(s.client.SetMTU("vc", 40000), s.gw.SetMTU("vs", 40000)))
		address := netip.MustParseAddr(f.gateway)
		open := s.udp(s.gw, netip.AddrPortFrom(address, 4000).String())
		shut := s.udp(s.gw, netip.AddrPortFrom(address, 5000).String())
		s.open()
		s.bare(guard.Plan{})
		from := s.udp(s.client, netip.AddrPortFrom(netip.MustParseAddr(f.stranger), 0).String())
		data := bytes.Repeat([]byte{5000 >> 8, 5000 & 0xff}, 30000) // data that would read as the guarded port
		large := func(port uint16) {
			_, err := from.WriteToUDPAddrPort(data, netip.AddrPortFrom(address, port))
			s.must(err)
		}
		large(5000)
		lab.Eventually(t, "a datagram in fragments", func() bool {
			large(4000)
			return s.gets(open, silence)
		})
		if s.gets(shut, silence) {
			t.Error("a guarded port got a datagram in fragments")
		}
	})
}
