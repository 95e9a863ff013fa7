package policy

import (
	"errors"
	"net/netip"
	"testing"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
)

// TestForwarded: a forwarded port is opened by the name of its service, from where it leads somewhere; a grant for its
// number is not kept.
func TestForwarded(t *testing.T) {
	here, four, six := ":22", "198.51.100.5:22", "[2001:db8:1::5]:22"
	for from, leads := range map[string]string{"192.0.2.2": four, "::ffff:192.0.2.2": four, "2001:db8::2": six,
		"fe80::2%2": "", "169.254.0.2": ""} {
		for _, to := range []string{here, four, six} {
			p := newPolicy(t, held{})
			led := netip.AddrPortFrom(netip.Addr{}, 22)
			if to != here {
				led = netip.MustParseAddrPort(to)
			}
			p.services[1].Forward = []netip.AddrPort{led}
			c := keys.Client{Name: "alice", Allow: []string{"ssh", "tcp/22"}}
			gs, err := p.Authorize(knock(c, ssh), netip.MustParseAddr(from), now, now)
			denial, _ := errors.AsType[*Denial](err)
			switch want := to == here || to == leads; {
			case want && (err != nil || len(gs) != 1 || len(gs[0].To) > 0):
				t.Errorf("from %s to %s: got %v, %v", from, to, gs, err)
			case !want && (denial == nil || denial.Reason != spa.ReasonOtherFamily):
				t.Errorf("from %s to %s: got %v, want a denial", from, to, err)
			}
			_, err = p.Authorize(knock(c, raw(service.TCP, 22)), netip.MustParseAddr(from), now, now)
			if denial, _ := errors.AsType[*Denial](err); denial == nil || denial.Reason != spa.ReasonNoService {
				t.Errorf("from %s by number: got %v, want a denial", from, err)
			}
			g := firewall.Grant{Client: "alice", Service: "tcp/22", Source: netip.MustParseAddr(from),
				Ports: ports(t, "tcp/22"), Until: now.Add(1)}
			if p.Keeps(&c, g, now) {
				t.Error("a grant for the number is kept")
			}
		}
	}
}
