package client

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// resolve4 sets this process's resolver to one that knows an IPv4 address for every name, and answers for IPv6 with a
// code, or, without one, never. It uses no network.
func resolve4(t *testing.T, v6 *dnsmessage.RCode) {
	t.Helper()
	usual := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = usual })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go answerNames(theirs, v6)
		return ours, nil
	}}
}

// unknown is the resolver's answer to every question; 0: the normal answers.
var unknown dnsmessage.RCode

// answerNames answers queries as over TCP: with a length before each message.
func answerNames(conn net.Conn, v6 *dnsmessage.RCode) {
	defer conn.Close()
	for {
		var length uint16
		if binary.Read(conn, binary.BigEndian, &length) != nil {
			return
		}
		question := make([]byte, length)
		if _, err := io.ReadFull(conn, question); err != nil {
			return
		}
		if answer := answerName(question, v6); answer != nil {
			conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
		}
	}
}

func answerName(question []byte, v6 *dnsmessage.RCode) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	switch {
	case unknown != 0:
		m.RCode = unknown
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1},
			Body: &dnsmessage.AResource{A: gate4.As4()}}}
	case v6 == nil:
		return nil
	default:
		m.RCode = *v6
	}
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return packed
}

// A resolver that never answers for IPv6 does not delay a gateway's IPv4 address for long.
func TestLookupOfOneFamily(t *testing.T) {
	readConfiguration(t)
	failed := dnsmessage.RCodeServerFailure
	for name, c := range map[string]struct {
		v6    *dnsmessage.RCode
		after time.Duration
	}{"silent": {nil, grace}, "failing": {&failed, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				resolve4(t, c.v6)
				start := time.Now()
				addrs, err := system{}.Lookup(t.Context(), "gw.example.net.")
				if err != nil || !slices.Equal(unmapped(addrs), []netip.Addr{gate4}) {
					t.Errorf("got %v, %v", addrs, err)
				}
				if waited := time.Since(start); waited != c.after {
					t.Errorf("it took %v, want %v", waited, c.after)
				}
				<-time.After(time.Minute) // until the resolver has given up the abandoned query
			})
		})
	}
}

// readConfiguration makes the resolver read the system's files, which it does not do in a bubble.
func readConfiguration(t *testing.T) {
	t.Helper()
	nobody := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody is there") }
	if _, err := (&net.Resolver{PreferGo: true, Dial: nobody}).LookupNetIP(t.Context(), "ip4",
		"gw.example.net."); err == nil {
		t.Fatal("a name was looked up that nobody knows")
	}
}

// A second address that cannot be looked up delays a Dialer only for its timeout.
func TestDialerLookupEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		d := &Dialer{Profile: g.profile, Timeout: 50 * time.Millisecond}
		start := time.Now()
		if _, err := d.dial(t.Context(), "tcp", "slow.example.net:22", n); !errors.Is(err, context.DeadlineExceeded) ||
			time.Since(start) != d.Timeout {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}
