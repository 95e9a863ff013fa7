package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestOnceForward: at a forwarded port too a grant admits one flow. Another one, also from the port of the first when
// that is over, gets a stranger's answer.
func TestOnceForward(t *testing.T) {
	for i, way := range forwardings() {
		for _, f := range bothFamilies {
			for _, closed := range []Closed{Drop, Reject} {
				t.Run(fmt.Sprintf("%s/%s/closed=%d", way.name, f.name, closed), func(t *testing.T) {
					t.Parallel()
					w := newForwardedOnce(t, way, f, closed)
					w.once("40000", i%2 == 0)
				})
			}
		}
	}
}

func newForwardedOnce(t *testing.T, way forwarding, f sides, closed Closed) *forwarded {
	t.Helper()
	return newForwarded(t, kinds()[0], way, f, func(c *Config) {
		c.Closed, c.Once = closed, rangesOf("tcp/2222 udp/2222")
	})
}

func (w *forwarded) once(port string, reset bool) {
	w.Helper()
	from := net.JoinHostPort(w.alice, port)
	w.knocks(w.alice)
	c := lab.Value(w.attempt(from, w.gateway, "2222", lab.Patience))(w)
	w.must(w.accept.(*net.TCPListener).SetDeadline(time.Now().Add(lab.Patience)))
	v := session{c, lab.Value(w.accept.Accept())(w)}
	w.mutual(v, true)
	w.oneMore(w.alice)
	w.mutual(v, true)
	if reset {
		w.must(v.server.(*net.TCPConn).SetLinger(0))
	}
	w.must(v.server.Close())
	hears(v.client, lab.Patience) // the end
	w.must(v.client.Close())
	w.oneMore(from)
	w.oneMore(w.alice)
	w.knocks(w.alice)
	w.must(lab.Value(w.attempt(w.alice, w.gateway, "2222", lab.Patience))(w).Close())
	w.knocks(w.alice)
	w.must(w.Grant(w.Context(), []Grant{{Client: "bob", Service: "led", Ports: rangesOf("tcp/2222"),
		Source: netip.MustParseAddr(w.alice), Until: time.Now().Add(long)}}, time.Now()))
	for range 2 {
		w.must(lab.Value(w.attempt(w.alice, w.gateway, "2222", 2*silence))(w).Close())
	}
	w.oneMore(w.alice)
	w.leadsNothingElse()
}

// leadsNothingElse checks that a client with grants for the forwarded port and for another reaches the program on that
// other port, and the machine behind on the number of the forwarded one, under its own address.
func (w *forwarded) leadsNothingElse() {
	w.Helper()
	w.grant("alice", w.alice, long)
	w.connect(w.alice, w.gateway, "22")
	if !w.away {
		return
	}
	l := w.listens(w.at, ":2222")
	c, err := w.dial(w.alice, w.place, "2222")
	w.must(err)
	defer c.Close()
	if seen := netip.MustParseAddrPort(w.hearing(l, c).RemoteAddr().String()).Addr().Unmap(); seen.String() != w.alice {
		w.Errorf("the machine sees %v, want %s", seen, w.alice)
	}
}

// oneMore wants a flow to get a stranger's answer.
func (w *forwarded) oneMore(from string) {
	w.Helper()
	_, err := w.attempt(from, w.gateway, "2222", 2*silence)
	refused := errors.Is(err, syscall.ECONNREFUSED)
	if err == nil || errors.Is(err, syscall.EADDRINUSE) || refused != (w.config.Closed == Reject) {
		w.Errorf("one more flow from %s got %v, want a stranger's answer", from, err)
	}
}
