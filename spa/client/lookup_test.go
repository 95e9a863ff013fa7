package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// resolve4 makes this process's resolver one that knows an IPv4 address of every name, and
// answers for IPv6 with a code, or, without one, never.
func resolve4(t *testing.T, v6 *dnsmessage.RCode) {
	t.Helper()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go answerNames(server, v6)
	usual := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = usual })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp4", server.LocalAddr().String())
	}}
}

func answerNames(server *net.UDPConn, v6 *dnsmessage.RCode) {
	b := make([]byte, 1500)
	for {
		n, from, err := server.ReadFrom(b)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		switch {
		case q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1},
				Body: &dnsmessage.AResource{A: gate4.As4()}}}
		case v6 == nil:
			continue
		default:
			m.RCode = *v6
		}
		if packed, err := m.Pack(); err == nil {
			server.WriteTo(packed, from)
		}
	}
}

// A resolver that never answers for IPv6 does not keep a gateway's IPv4 address back.
func TestLookupOfOneFamily(t *testing.T) {
	failed := dnsmessage.RCodeServerFailure
	for name, v6 := range map[string]*dnsmessage.RCode{"silent": nil, "failing": &failed} {
		t.Run(name, func(t *testing.T) {
			resolve4(t, v6)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			addrs, err := system{}.Lookup(ctx, "gw.example.net.")
			if err != nil || !slices.Equal(unmapped(addrs), []netip.Addr{gate4}) {
				t.Errorf("got %v, %v", addrs, err)
			}
		})
	}
}

// A second address that cannot be looked up keeps a Dialer only for its time.
func TestDialerLookupEnds(t *testing.T) {
	g, n := fakes(t)
	d := &Dialer{Profile: g.profile, Timeout: 50 * time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := d.dial(ctx, "tcp", "slow.example.net:22", n); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		t.Errorf("got %v, and the caller's context %v", err, ctx.Err())
	}
}
