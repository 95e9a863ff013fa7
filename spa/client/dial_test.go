package client

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

var errShut = errors.New("connection refused")

// dualStack returns a gateway with a name and an address of each family, which answers IPv4 at once and IPv6 a
// millisecond later, and whose ports accept.
func dualStack(t *testing.T) (*gateway, *fakeNet) {
	g, n := fakes(t)
	g.profile.Address = "gw.example.net"
	n.hosts = map[string][]netip.Addr{"gw.example.net": {gate4, gate6}}
	n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
		receipt := g.receive(packet, to)
		if receipt == nil {
			return nil
		}
		late := time.Duration(0)
		if to.Addr().Is6() {
			late = time.Millisecond
		}
		time.AfterFunc(late, func() { c.deliver(receipt, nil) })
		return nil
	}
	n.tcp = func(netip.Addr, netip.AddrPort) error { return nil }
	return g, n
}

func TestDial(t *testing.T) {
	both := func(spa.Knock, netip.AddrPort, int) spa.Status { return spa.Granted }
	only6 := func(_ spa.Knock, to netip.AddrPort, _ int) spa.Status {
		if to.Addr().Is4() {
			return spa.ReasonNotAllowed
		}
		return spa.Granted
	}
	silent4 := func(_ spa.Knock, to netip.AddrPort, _ int) spa.Status {
		if to.Addr().Is4() {
			return 0
		}
		return spa.Granted
	}
	accepts := func(netip.Addr, netip.AddrPort) error { return nil }
	for name, c := range map[string]struct {
		decide func(spa.Knock, netip.AddrPort, int) spa.Status
		tcp    func(netip.Addr, netip.AddrPort) error
		to     netip.Addr
		after  time.Duration
	}{
		"the family that was granted":         {only6, accepts, gate6, time.Millisecond},
		"no wait for the silent family":       {silent4, accepts, gate6, time.Millisecond},
		"the first of two, without any delay": {both, accepts, gate4, 0},
		"the second at once where the first is shut": {both, func(_ netip.Addr, to netip.AddrPort) error {
			if to.Addr().Is4() {
				return errShut
			}
			return nil
		}, gate6, time.Millisecond},
		"the second a quarter of a second after the first": {both, func(_ netip.Addr, to netip.AddrPort) error {
			if to.Addr().Is4() {
				return errHangs
			}
			return nil
		}, gate6, 250*time.Millisecond + time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := dualStack(t)
				g.decide = c.decide
				n.tcp = c.tcp
				start := time.Now()
				conn, _, err := mustPrepare(t, g, n, open()).Dial(t.Context(), 0)
				lab.Must(t, err)
				if to := conn.(*fakeTCP).to; to != netip.AddrPortFrom(c.to, 22) {
					t.Errorf("connected to %v, want port 22 of %v", to, c.to)
				}
				if after := time.Since(start); after != c.after {
					t.Errorf("connected after %v, want %v", after, c.after)
				}
				n.wantOpen(t, conn)
			})
		})
	}
}

func TestDialFails(t *testing.T) {
	for name, c := range map[string]struct {
		status spa.Status
		port   uint16
		tcp    error
		want   func(error) bool
	}{
		"refused": {spa.ReasonNotAllowed, 0, nil, func(err error) bool {
			var refused *RefusedError
			return errors.As(err, &refused) && refused.Status == spa.ReasonNotAllowed && refused.Host == "gw"
		}},
		"no answer":      {0, 0, errShut, func(err error) bool { return errors.Is(err, ErrNoAnswer) }},
		"a mismatch":     {spa.Closed, 0, nil, func(err error) bool { return errors.Is(err, ErrMismatch) }},
		"a foreign port": {spa.Granted, 23, nil, func(err error) bool { return errors.As(err, new(*PortError)) }},
		"a shut port":    {spa.Granted, 22, errShut, func(err error) bool { return errors.Is(err, errShut) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := dualStack(t)
				g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return c.status }
				n.tcp = func(netip.Addr, netip.AddrPort) error { return c.tcp }
				conn, answers, err := mustPrepare(t, g, n, open()).Dial(t.Context(), c.port)
				if conn != nil || !c.want(err) {
					t.Errorf("got %v, %v", conn, err)
				}
				if len(answers) != 2 {
					t.Errorf("got %d answers, want both", len(answers))
				}
			})
		})
	}
	g, n := dualStack(t)
	for _, bad := range []Command{{Type: spa.TypeClose, Services: ssh},
		{Type: spa.TypeOpen, Services: []service.Service{{Name: "ssh"}, {Name: "vpn"}}}} {
		if _, _, err := mustPrepare(t, g, n, bad).Dial(t.Context(), 22); !errors.As(err, new(*CommandError)) {
			t.Errorf("%+v: got %v", bad, err)
		}
	}
}

// If no answer came, the port is tried once: perhaps only the receipts were lost. It is not tried if there was an
// answer.
func TestLastTry(t *testing.T) {
	accepts := func(hosts ...netip.Addr) func(netip.Addr, netip.AddrPort) error {
		return func(_ netip.Addr, to netip.AddrPort) error {
			if slices.Contains(hosts, to.Addr()) && to.Port() == 22 {
				return nil
			}
			return errHangs
		}
	}
	for name, test := range map[string]struct {
		status spa.Status
		port   uint16
		tcp    func(netip.Addr, netip.AddrPort) error
		want   netip.Addr
	}{
		"open":               {0, 0, accepts(gate4, gate6), gate4},
		"open in one family": {0, 0, accepts(gate6), gate6},
		"port asked for":     {0, 22, accepts(gate6), gate6},
		"dark":               {0, 0, accepts(), netip.Addr{}},
		"refused":            {spa.ReasonNotAllowed, 0, accepts(gate4, gate6), netip.Addr{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := fakes(t)
				g.profile.Address = "gw.example.net"
				n.hosts = map[string][]netip.Addr{"gw.example.net": {gate4, gate6}}
				n.tcp = test.tcp
				g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return test.status }
				start := time.Now()
				conn, _, err := mustPrepare(t, g, n, open()).Dial(t.Context(), test.port)
				if (conn != nil) != test.want.IsValid() || (conn == nil) != (err != nil) {
					t.Fatalf("got %v, %v", conn, err)
				}
				if waited := time.Since(start); waited > DefaultTimeout+lastProbe {
					t.Errorf("it took %v", waited)
				}
				if conn != nil {
					n.wantOpen(t, conn)
					conn.Close()
				}
				plan := mustPrepare(t, g, n, open())
				var answers []Answer
				for a := range plan.Knock(t.Context()) {
					answers = append(answers, a)
				}
				if got := plan.Reachable(t.Context(), answers); got != test.want.IsValid() {
					t.Errorf("Reachable: %v", got)
				}
			})
		})
	}
}

func TestDialCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := dualStack(t)
		n.tcp = func(netip.Addr, netip.AddrPort) error {
			<-time.After(time.Second)
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		conn, _, err := mustPrepare(t, g, n, open()).Dial(ctx, 22)
		if conn != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, %v", conn, err)
		}
		n.wantOpen(t, nil)
	})
}

// Of two connections, the unused one is closed.
func TestRaceHasOneWinner(t *testing.T) {
	g, n := dualStack(t)
	r := newRace(t.Context(), mustPrepare(t, g, n, open()))
	for _, gateway := range []netip.Addr{gate4, gate6} {
		conn := lab.Value(n.Dial(t.Context(), netip.Addr{}, netip.AddrPortFrom(gateway, 22)))(t)
		r.enter(Answer{Verdict: Opened, conn: conn})
	}
	r.runners.Wait()
	conn := lab.Value(r.winner())(t)
	r.end()
	n.wantOpen(t, conn)
}

// The same while nothing has answered yet.
func TestDialCancelledWhileKnocking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := dualStack(t)
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		conn, _, err := mustPrepare(t, g, n, open()).Dial(ctx, 22)
		if conn != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, %v", conn, err)
		}
	})
}

// An unused answer leaves no connection open, whether the loop is left or the context ends.
func TestKnockClosesWhatNobodyTakes(t *testing.T) {
	for name, leave := range map[string]bool{"the loop is left": true, "the context ends": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := dualStack(t)
				g.profile.Receipts = false
				g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
				plan := mustPrepare(t, g, n, open())
				plan.keep = true
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				for a := range plan.Knock(ctx) {
					<-time.After(grace / 2) // the other family has answered by now
					a.discard()
					cancel()
					if leave {
						break
					}
				}
				if len(n.dialled) != 2 {
					t.Errorf("%d connections were made, want one a family", len(n.dialled))
				}
				n.wantOpen(t, nil)
			})
		})
	}
}

func TestLateConnectionIsClosed(t *testing.T) {
	_, n := dualStack(t)
	conn := lab.Value(n.Dial(t.Context(), private, netip.AddrPortFrom(gate4, 22)))(t)
	late := make(chan accepted, 1)
	late <- accepted{conn, gate4}
	(&knocking{}).leave(late)
	(&knocking{}).leave(late) // none is there
	n.wantOpen(t, nil)
}

// A connection that was made only to test a port is closed.
func TestProbesAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := blind(t, 0)
		g.profile.Services["web"] = []string{"tcp/80"}
		c := open()
		c.Services = []service.Service{{Name: "ssh"}, {Name: "web"}}
		plan := mustPrepare(t, g, n, c)
		if a := knockOnce(t, plan); a.Verdict != Opened || len(n.dialled) != 2 {
			t.Fatalf("got %+v and %d connections, want one a service", a, len(n.dialled))
		}
		n.wantOpen(t, nil)
		granted := []spa.Granting{{Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}},
			{Ports: []service.Ports{{Proto: service.TCP, Low: 80, High: 80}}}}
		if err := plan.WaitOpen(t.Context(), Answer{Gateway: gate4, Receipt: &spa.Receipt{Services: granted}}); err != nil ||
			len(n.dialled) != 4 {
			t.Errorf("WaitOpen: %v after %d connections", err, len(n.dialled))
		}
		n.wantOpen(t, nil)
	})
}

// Without receipts, Dial returns the connection that showed that the port accepts, and closes the other family's.
func TestDialWithoutReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := dualStack(t)
		g.profile.Receipts = false
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		start := time.Now()
		n.tcp = func(netip.Addr, netip.AddrPort) error {
			if time.Since(start) < 100*time.Millisecond {
				return errDropped
			}
			return nil
		}
		conn, answers, err := mustPrepare(t, g, n, open()).Dial(t.Context(), 2222)
		if err != nil || len(answers) == 0 || answers[0].Verdict != Opened {
			t.Fatalf("got %v, %+v", err, answers)
		}
		if to := conn.(*fakeTCP).to; to.Port() != 2222 {
			t.Errorf("connected to %v, want the port that was asked for", to)
		}
		if len(n.dialled) > 2 {
			t.Errorf("%d connections were made, want one a family", len(n.dialled))
		}
		n.wantOpen(t, conn)
	})
	synctest.Test(t, func(t *testing.T) {
		g, n := dualStack(t)
		g.profile.Receipts = false
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		c := open()
		c.Services = []service.Service{{Name: "unknown"}}
		conn, _, err := mustPrepare(t, g, n, c).Dial(t.Context(), 0)
		if conn != nil || !errors.As(err, new(*PortError)) {
			t.Errorf("a port that nobody knows: got %v, %v", conn, err)
		}
	})
}

// A receipt has no room for all ports of some services: a port that it does not list may be open too.
func TestDialToldMore(t *testing.T) {
	g, n := dualStack(t)
	plan := mustPrepare(t, g, n, open())
	plan.port = 8443
	a := Answer{Receipt: &spa.Receipt{Services: []spa.Granting{{Ports: []service.Ports{{Proto: service.TCP, Low: 22,
		High: 22}}, More: true}}}}
	if port, err := plan.portOf(a); err != nil || port != 8443 {
		t.Errorf("got %d, %v", port, err)
	}
	a.Receipt.Services[0].More = false
	if _, err := plan.portOf(a); err == nil {
		t.Error("a port that is none of all: no error")
	}
}

func TestOnlyPort(t *testing.T) {
	tcp := func(low, high uint16) service.Ports { return service.Ports{Proto: service.TCP, Low: low, High: high} }
	udp := service.Ports{Proto: service.UDP, Low: 53, High: 53}
	for name, c := range map[string]struct {
		ports []service.Ports
		asked uint16
		want  uint16
		err   string
	}{
		"the only one":        {[]service.Ports{tcp(22, 22)}, 0, 22, ""},
		"the only one of TCP": {[]service.Ports{udp, tcp(53, 53)}, 0, 53, ""},
		"one of several":      {[]service.Ports{tcp(80, 80), tcp(443, 443)}, 443, 443, ""},
		"one of a range":      {[]service.Ports{tcp(60000, 60010)}, 60010, 60010, ""},
		"several": {[]service.Ports{tcp(80, 80), tcp(443, 443)}, 0, 0,
			"s has several TCP ports: tcp/80, tcp/443"},
		"a range":            {[]service.Ports{tcp(60000, 60010)}, 0, 0, "s has several TCP ports: tcp/60000-60010"},
		"UDP alone":          {[]service.Ports{udp}, 0, 0, "s has no TCP port (udp/53)"},
		"UDP of that number": {[]service.Ports{udp}, 53, 0, "tcp/53 is not a port of s (udp/53)"},
		"none of them": {[]service.Ports{tcp(60000, 60010)}, 60011, 0,
			"tcp/60011 is not a port of s (tcp/60000-60010)"},
		"nothing is known":       {nil, 0, 0, "the ports of s are not known"},
		"nothing is known of it": {nil, 22, 0, "the ports of s are not known"},
	} {
		got, err := OnlyPort(service.Service{Name: "s"}, c.ports, c.asked)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got != c.want || text != c.err {
			t.Errorf("%s: got %d, %q; want %d, %q", name, got, text, c.want, c.err)
		}
	}
}

func TestOpenAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := dualStack(t)
		c := open()
		answers, err := do(t.Context(), g.profile, c, n)
		if err != nil || len(answers) != 2 || answers[0].Verdict != Opened {
			t.Errorf("open: got %+v, %v", answers, err)
		}
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return spa.Closed }
		c.Type = spa.TypeClose
		if answers, err = do(t.Context(), g.profile, c, n); err != nil || answers[0].Verdict != Closed {
			t.Errorf("close: got %+v, %v", answers, err)
		}
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return spa.ReasonExpired }
		if _, err = do(t.Context(), g.profile, open(), n); !errors.As(err, new(*RefusedError)) {
			t.Errorf("refused: got %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err = do(ended, g.profile, open(), n); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: got %v", err)
		}
		g.profile.Receipts = false
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		c.Timeout = 50 * time.Millisecond
		if answers, err = do(t.Context(), g.profile, c, n); err != nil || answers[0].Verdict != Sent {
			t.Errorf("a close that nothing confirms: got %+v, %v", answers, err)
		}
	})
}
