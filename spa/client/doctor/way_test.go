package doctor

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"sallyport/keys"
)

// resolve makes this process's resolver one that knows IPv4 addresses of every name, and is
// silent about IPv6.
func resolve(t *testing.T, v4 ...[4]byte) {
	t.Helper()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 || m.Questions[0].Type != dnsmessage.TypeA || len(v4) == 0 {
				continue
			}
			m.Response, m.Additionals = true, nil
			for _, addr := range v4 {
				header := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1}
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr}})
			}
			if packed, err := m.Pack(); err == nil {
				server.WriteTo(packed, from)
			}
		}
	}()
	usual := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = usual })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp4", server.LocalAddr().String())
	}}
}

// Open tries all addresses of a name: the one that is looked at first may be the one that is dead.
// That nobody tells an IPv6 address is worth knowing, because each look-up waits for it.
func TestAddressesOfAName(t *testing.T) {
	resolve(t, [4]byte{192, 0, 2, 1}, [4]byte{192, 0, 2, 9})
	e := &examination{ctx: t.Context(), profile: &keys.Profile{Name: "gw", Address: "gw.example.net."}, options: Options{Timeout: 500 * time.Millisecond}}
	var texts []string
	for _, f := range e.name() {
		texts = append(texts, string(f.State)+" "+f.Text)
	}
	if len(e.families) != 2 || e.families[0].name == e.families[1].name || e.families[0].gateway == e.families[1].gateway {
		t.Errorf("got %d addresses to look at, want the two: %q", len(e.families), texts)
	}
	if len(texts) != 2 || !strings.HasPrefix(texts[1], "note gw.example.net. has no IPv6 address that is known (the resolver does not answer): every knock waits") {
		t.Errorf("got %q", texts)
	}
}

// A resolver that answers nothing at all is the end of it, for certain.
func TestNoResolver(t *testing.T) {
	resolve(t)
	e := &examination{ctx: t.Context(), profile: &keys.Profile{Name: "gw", Address: "gw.example.net."}, options: Options{Timeout: 200 * time.Millisecond}}
	if found := e.name(); len(found) != 1 || found[0].State != Bad || !e.over || !strings.Contains(found[0].Text, "the resolver does not answer") {
		t.Errorf("got %+v, over is %v", found, e.over)
	}
}
