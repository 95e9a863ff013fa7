package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// resolver is a connection to a resolver that knows IPv4 addresses for every name, and never answers for IPv6.
// Deadlines expire at once.
type resolver struct {
	net.Conn
	v4 [][4]byte
	in io.Reader // the answers, as over TCP: with a length before each
}

func (r *resolver) Write(b []byte) (int, error) {
	r.in = strings.NewReader(string(answer(b[2:], r.v4)))
	return len(b), nil
}

func (r *resolver) Read(b []byte) (int, error) {
	n, err := r.in.Read(b)
	if errors.Is(err, io.EOF) {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

func answer(question []byte, v4 [][4]byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 || m.Questions[0].Type != dnsmessage.TypeA || len(v4) == 0 {
		return nil
	}
	m.Response, m.Additionals = true, nil
	for _, addr := range v4 {
		header := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr}})
	}
	packed, err := m.Pack()
	if err != nil {
		return nil
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
}

// resolve sets this process's resolver to ours.
func resolve(t *testing.T, v4 ...[4]byte) {
	t.Helper()
	nobody, end := net.Pipe() // for deadlines and Close
	t.Cleanup(func() { end.Close() })
	usual := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = usual })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return &resolver{Conn: nobody, v4: v4}, nil
	}}
}

// Doctor tries all addresses of a name, since the first may be dead. A missing answer for IPv6 is worth a note, because
// each look-up waits for it.
func TestAddressesOfAName(t *testing.T) {
	resolve(t, [4]byte{192, 0, 2, 1}, [4]byte{192, 0, 2, 9})
	e := &examination{ctx: t.Context(), profile: &keys.Profile{Name: "gw", Address: "gw.example.net."},
		options: Options{Timeout: lab.Patience}}
	var texts []string
	for _, f := range e.name() {
		texts = append(texts, string(f.State)+" "+f.Text)
	}
	if len(e.families) != 2 || e.families[0].name == e.families[1].name || e.families[0].gateway == e.families[1].gateway {
		t.Errorf("got %d addresses to look at, want the two: %q", len(e.families), texts)
	}
	if len(texts) != 2 || !strings.HasPrefix(texts[1], "note gw.example.net. has no known IPv6 address (the "+
		"resolver does not answer): every knock waits") {
		t.Errorf("got %q", texts)
	}
}

// If the resolver does not answer at all, that is the certain cause.
func TestNoResolver(t *testing.T) {
	resolve(t)
	e := &examination{ctx: t.Context(), profile: &keys.Profile{Name: "gw", Address: "gw.example.net."},
		options: Options{Timeout: lab.Patience}}
	if found := e.name(); len(found) != 1 || found[0].State != Bad || !e.over || !strings.Contains(found[0].Text,
		"the resolver does not answer") {
		t.Errorf("got %+v, over is %v", found, e.over)
	}
}
