package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// routing is a host that forwards to 198.51.100.0/24 and 2001:db8:1::/64.
func (s *scene) routing() {
	s.t.Helper()
	lab.Must(s.t, errors.Join(lab.Link(s.on, "p1", s.on, "p2"), s.on.AddAddr("p1", "198.51.100.1/24"),
		s.on.AddAddr("p1", "2001:db8:1::1/64"), s.on.Forward()))
}

// TestForwarded: check finds what keeps a forwarded port from leading where it should, and nothing else.
func TestForwarded(t *testing.T) {
	lab.NeedProgram(t, "nft", "apt-get install nftables")
	refuses := func(h *host) {
		h.connect = func(context.Context, netip.AddrPort) error { return syscall.ECONNREFUSED }
	}
	both := forwardedTo("198.51.100.5:22", "[2001:db8:1::5]:22")
	without := func(sysctl string) func(*scene) {
		return func(s *scene) {
			s.routing()
			lab.Must(s.t, s.on.Sysctl(sysctl, "0"))
		}
	}
	for _, test := range []hostTest{
		{name: "well", config: both, spoil: (*scene).routing},
		{name: "no route", config: forwardedTo("198.51.100.5:22"), pretend: refuses, want: Problem,
			says: []string{"service.inner.forward", "there is no route to 198.51.100.5"}},
		{name: "IPv4 is not forwarded", config: both, spoil: without("net.ipv4.ip_forward"), want: Problem,
			says: []string{"does not forward IPv4", "sysctl -w net.ipv4.ip_forward=1"}},
		{name: "IPv6 is not forwarded", config: both, spoil: without("net.ipv6.conf.all.forwarding"), want: Problem,
			says: []string{"does not forward IPv6", "sysctl -w net.ipv6.conf.all.forwarding=1"}},
		{name: "dead", config: forwardedTo("198.51.100.5:22"), spoil: (*scene).routing, pretend: refuses, want: Warning,
			says: []string{"198.51.100.5:22 does not accept", "connection refused"}},
		{name: "dropped on the way", config: forwardedTo("198.51.100.5:22"), spoil: func(s *scene) {
			s.routing()
			beside("table inet f { chain c { type filter hook forward priority 0; policy drop; }; }\n")(s)
		}, want: Problem, says: []string{"drops new connections to tcp/22 at 198.51.100.5"}},
		{name: "this host", config: forwardedTo("192.0.2.1:22"), spoil: (*scene).routing, want: Problem,
			says: []string{"192.0.2.1 is an address of this host", `forward = ":22"`}},
		{name: "a program here", config: both, spoil: func(s *scene) { s.routing(); s.hold("web", "0.0.0.0:2222") },
			want: Notice, says: []string{"service.inner.forward", "web listens on tcp/2222", "no client reaches"}},
		{name: "a port", config: forwardedTo(), spoil: beside("table inet g { chain c { type filter hook input priority " +
			"-1; tcp dport 8022 drop; }; }\n"), want: Problem, says: []string{"drops new connections to tcp/8022"}},
	} {
		t.Run(test.name, test.run)
	}
}

func TestConnect(t *testing.T) {
	l := lab.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	at := netip.MustParseAddrPort(l.Addr().String())
	lab.Must(t, connect(t.Context(), at))
	lab.Must(t, l.Close())
	if err := connect(t.Context(), at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want a refusal", err)
	}
}
