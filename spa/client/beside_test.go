package client

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// trip is the round trip of a long path.
const trip = 100 * time.Millisecond

// longPath returns a gateway on a long path. Its ports answer the n-th SYN, counted from 0, as a function says: nil
// after a round trip, an error at once.
func longPath(t *testing.T, syn func(n int32) error) (*gateway, *fakeNet, *atomic.Int32) {
	g, n := fakes(t)
	n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
		if receipt := g.receive(packet, to); receipt != nil {
			time.AfterFunc(trip, func() { c.deliver(receipt, nil) })
		}
		return nil
	}
	syns := new(atomic.Int32)
	n.tcp = func(netip.Addr, netip.AddrPort) error {
		err := syn(syns.Add(1) - 1)
		if err == nil {
			<-time.After(trip)
		}
		return err
	}
	return g, n, syns
}

// TestBeside: which connection is used, and how many are tried, for each order in which packets may arrive.
func TestBeside(t *testing.T) {
	accept := func(int32) error { return nil }
	second := func(first error) func(int32) error {
		return func(n int32) error {
			if n == 0 {
				return first
			}
			return nil
		}
	}
	silent := func(until int) func(spa.Knock, netip.AddrPort, int) spa.Status {
		return func(_ spa.Knock, _ netip.AddrPort, n int) spa.Status {
			if n < until {
				return 0
			}
			return spa.Granted
		}
	}
	refuse := func(spa.Knock, netip.AddrPort, int) spa.Status { return spa.ReasonNotAllowed }
	for name, c := range map[string]struct {
		syn    func(int32) error
		decide func(spa.Knock, netip.AddrPort, int) spa.Status
		syns   int32
		within time.Duration
		fails  error
	}{
		"the grant first":              {accept, silent(0), 1, trip + behind, nil},
		"the SYN first":                {second(errHangs), silent(0), 2, 2*trip + 2*behind + mostJitter, nil},
		"reset":                        {second(errShut), silent(0), 2, 2 * trip, nil},
		"the first receipt is lost":    {accept, silent(1), 1, 4 * trip, nil},
		"no receipt comes":             {accept, silent(100), 1, DefaultTimeout, nil},
		"nothing listens":              {func(int32) error { return errShut }, silent(0), 2, trip, errShut},
		"nothing listens, SYN first":   {nothingAfter(errHangs), silent(0), 2, trip + 2*behind + mostJitter, errShut},
		"refused, with an older grant": {accept, refuse, 1, trip + behind, new(RefusedError)},
		"refused":                      {func(int32) error { return errHangs }, refuse, 1, trip, new(RefusedError)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n, syns := longPath(t, c.syn)
				g.decide = c.decide
				start := time.Now()
				conn, _, err := mustPrepare(t, g, n, open()).Dial(t.Context(), 22)
				if took := time.Since(start); took > c.within {
					t.Errorf("it took %v, want at most %v", took, c.within)
				}
				if (conn == nil) != (c.fails != nil) || !sameKind(err, c.fails) {
					t.Errorf("got %v, %v", conn, err)
				}
				if syns.Load() != c.syns {
					t.Errorf("%d connections were tried, want %d", syns.Load(), c.syns)
				}
				n.wantOpen(t, conn)
			})
		})
	}
}

// nothingAfter is a port on which nothing listens, behind a guard that drops the first SYN.
func nothingAfter(first error) func(int32) error {
	return func(n int32) error {
		if n == 0 {
			return first
		}
		return errShut
	}
}

func sameKind(err, want error) bool {
	if refused := new(RefusedError); errors.As(want, &refused) {
		return errors.As(err, &refused)
	}
	return errors.Is(err, want)
}

// A grant for one connection: if the first SYN got in and its answer is late, the second is shut out, which changes
// nothing, and the first connection is used.
func TestBesideOnce(t *testing.T) {
	for name, shut := range map[string]error{"drop": errHangs, "reject": errShut} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n, syns := longPath(t, func(n int32) error {
					if n == 0 {
						<-time.After(trip) // late
						return nil
					}
					return shut
				})
				g.once = true
				conn, _, err := mustPrepare(t, g, n, open()).Dial(t.Context(), 22)
				lab.Must(t, err)
				if syns.Load() != 2 {
					t.Errorf("%d connections were tried, want 2", syns.Load())
				}
				n.wantOpen(t, conn)
			})
		})
	}
}

// Nothing is sent to the port before the receipt if the answer may not lead there, and what was made is closed if it
// does not.
func TestBesideElsewhere(t *testing.T) {
	other := netip.MustParseAddr("192.0.2.7")
	for name, c := range map[string]struct {
		set  func(*gateway, *fakeNet, *Plan)
		port uint16
		to   string
		syns int32
	}{
		"another host": {func(_ *gateway, _ *fakeNet, p *Plan) {
			p.hosts = []netip.Addr{other}
		}, 22, "192.0.2.7:22", 1},
		"a service that is unknown": {func(g *gateway, _ *fakeNet, _ *Plan) {
			clear(g.profile.Services)
		}, 0, "192.0.2.1:22", 1},
		"another port than known": {func(g *gateway, _ *fakeNet, _ *Plan) {
			g.profile.Services["ssh"] = []string{"tcp/23"}
		}, 0, "192.0.2.1:22", 2},
		"another address answers": {func(g *gateway, _ *fakeNet, p *Plan) {
			p.Routes[0].To = targets([]netip.Addr{gate4, other}, []uint16{62201})
			g.decide = func(_ spa.Knock, to netip.AddrPort, _ int) spa.Status {
				if to.Addr() == gate4 {
					return 0
				}
				return spa.Granted
			}
		}, 22, "192.0.2.7:22", 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n, syns := longPath(t, func(int32) error { return nil })
				plan := mustPrepare(t, g, n, open())
				c.set(g, n, plan)
				conn, _, err := plan.Dial(t.Context(), c.port)
				lab.Must(t, err)
				if to := conn.(*fakeTCP).to.String(); to != c.to || syns.Load() != c.syns {
					t.Errorf("connected to %s after %d attempts, want %s and %d", to, syns.Load(), c.to, c.syns)
				}
				n.wantOpen(t, conn)
			})
		})
	}
}

// If no packet was sent, nothing is begun beside it, and a gateway without receipts is only probed.
func TestBesideNothing(t *testing.T) {
	for name, c := range map[string]struct {
		receipts bool
		send     error
		syns     int32
	}{
		"not sent":    {true, errors.New("network is unreachable"), 0},
		"no receipts": {false, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n, syns := longPath(t, func(int32) error { return errHangs })
				g.profile.Receipts = c.receipts
				n.udp = func(*fakeConn, []byte, netip.AddrPort) error { return c.send }
				ctx, cancel := context.WithTimeout(t.Context(), firstProbe/2)
				defer cancel()
				if conn, _, err := mustPrepare(t, g, n, open()).Dial(ctx, 22); conn != nil || err == nil {
					t.Errorf("got %v, %v", conn, err)
				}
				if syns.Load() != c.syns {
					t.Errorf("%d connections were tried, want %d", syns.Load(), c.syns)
				}
			})
		})
	}
}

// A second connection that waits for its turn does not hold up the one beside the knock.
func TestBesideNotInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n, _ := longPath(t, nil)
		g.profile.Address = "gw.example.net"
		n.hosts = map[string][]netip.Addr{"gw.example.net": {gate4, gate6}}
		n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
			late := trip
			if to.Addr().Is6() {
				late = trip / 2
			}
			receipt := g.receive(packet, to)
			time.AfterFunc(late, func() { c.deliver(receipt, nil) })
			return nil
		}
		n.tcp = func(_ netip.Addr, to netip.AddrPort) error {
			if to.Addr().Is6() {
				return errHangs
			}
			<-time.After(trip + 2*mostJitter)
			return nil
		}
		start := time.Now()
		conn, _, err := mustPrepare(t, g, n, open()).Dial(t.Context(), 22)
		lab.Must(t, err)
		if took := time.Since(start); took > 2*trip {
			t.Errorf("it took %v", took)
		}
		n.wantOpen(t, conn)
	})
}

// Whenever it is interrupted, Dial leaves no connection, and none is begun afterwards.
func TestBesideInterrupted(t *testing.T) {
	for after := time.Duration(0); after < 3*trip; after += trip / 50 {
		synctest.Test(t, func(t *testing.T) {
			g, n, syns := longPath(t, func(n int32) error {
				if n == 0 {
					return errHangs
				}
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			conn, _, err := mustPrepare(t, g, n, open()).Dial(ctx, 22)
			tried := syns.Load()
			if conn == nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after %v: %v", after, err)
			}
			n.wantOpen(t, conn)
			<-time.After(time.Second)
			if syns.Load() != tried {
				t.Errorf("after %v: a connection was begun after the end", after)
			}
		})
	}
}

// In both families at once, there is only one connection beside the knock, and at most three sockets.
func TestBesideBothFamilies(t *testing.T) {
	for name, c := range map[string]struct {
		shut4, shut6 error
		want         netip.Addr
		syns         int32
	}{
		"both":      {nil, nil, gate4, 2},
		"only IPv6": {errHangs, nil, gate6, 3},
		"only IPv4": {nil, errHangs, gate4, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n, syns := longPath(t, nil)
				g.profile.Address = "gw.example.net"
				n.hosts = map[string][]netip.Addr{"gw.example.net": {gate4, gate6}}
				n.tcp = func(_ netip.Addr, to netip.AddrPort) error {
					syns.Add(1)
					<-time.After(trip)
					if to.Addr().Is4() {
						return c.shut4
					}
					return c.shut6
				}
				conn, _, err := mustPrepare(t, g, n, open()).Dial(t.Context(), 22)
				lab.Must(t, err)
				if to := conn.(*fakeTCP).to.Addr(); to != c.want || syns.Load() > c.syns {
					t.Errorf("connected to %v after %d attempts, want %v and at most %d", to, syns.Load(), c.want, c.syns)
				}
				n.wantOpen(t, conn)
			})
		})
	}
}

// A refusal ends the connection beside the knock at once, even if the other family's answer is still to come.
func TestBesideRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n, _ := longPath(t, nil)
		g.profile.Address = "gw.example.net"
		n.hosts = map[string][]netip.Addr{"gw.example.net": {gate4, gate6}}
		n.udp = func(c *fakeConn, packet []byte, to netip.AddrPort) error {
			late := 2 * trip
			if to.Addr().Is6() {
				late = 4 * trip
			}
			receipt := g.receive(packet, to)
			time.AfterFunc(late, func() { c.deliver(receipt, nil) })
			return nil
		}
		g.decide = func(_ spa.Knock, to netip.AddrPort, _ int) spa.Status {
			if to.Addr().Is4() {
				return spa.ReasonNotAllowed
			}
			return spa.Granted
		}
		n.tcp = func(_ netip.Addr, to netip.AddrPort) error {
			if to.Addr().Is6() {
				n.wantOpen(t, nil)
			}
			return nil
		}
		conn, _, err := mustPrepare(t, g, n, open()).Dial(t.Context(), 22)
		lab.Must(t, err)
		n.wantOpen(t, conn)
	})
}

// Knock tries the port of a service that admits several connections beside its packet, and WaitOpen then needs no other
// attempt. For a grant for one connection that is one too many, which the plan reports.
func TestKnockBeside(t *testing.T) {
	for name, c := range map[string]struct {
		once   bool
		status spa.Status
		want   error
	}{
		"several": {false, spa.Granted, nil},
		"once":    {true, spa.Granted, ErrOnce},
		"refused": {false, spa.ReasonNotNow, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ends := c.once || c.status.Refused()
				g, n, syns := longPath(t, func(int32) error {
					if ends {
						return errHangs
					}
					return nil
				})
				g.once, g.decide = c.once, func(spa.Knock, netip.AddrPort, int) spa.Status { return c.status }
				command := open()
				command.Beside = true
				plan := mustPrepare(t, g, n, command)
				start := time.Now()
				a := knockOnce(t, plan)
				synctest.Wait()
				if plan.early.ended() != ends {
					t.Errorf("the attempt beside the packet: ended is %v", plan.early.ended())
				}
				if plan.Spent(a) != c.once {
					t.Errorf("spent: %v", plan.Spent(a))
				}
				if err := plan.WaitOpen(t.Context(), a); c.status == spa.Granted && !errors.Is(err, c.want) {
					t.Errorf("WaitOpen: %v", err)
				}
				if took := time.Since(start); took > trip+behind || syns.Load() != 1 {
					t.Errorf("it took %v and %d attempts", took, syns.Load())
				}
				<-time.After(trip)
				n.wantOpen(t, nil)
			})
		})
	}
}

// The port is tried beside the packet only if the command opens one service for this machine, and the key is not a
// recovery key.
func TestKnockNotBeside(t *testing.T) {
	for name, set := range map[string]func(*gateway, *Command){
		"not asked for":  func(_ *gateway, c *Command) { c.Beside = false },
		"a close":        func(_ *gateway, c *Command) { c.Type = spa.TypeClose },
		"two services":   func(_ *gateway, c *Command) { c.Services = append(c.Services, service.Service{Name: "vpn"}) },
		"UDP":            func(_ *gateway, c *Command) { c.Services = []service.Service{{Name: "vpn"}} },
		"another place":  func(_ *gateway, c *Command) { c.LetIn = netip.MustParsePrefix("198.51.100.0/24") },
		"a recovery key": func(g *gateway, _ *Command) { g.profile.Recovery = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n, syns := longPath(t, func(int32) error { return nil })
				command := open()
				command.Beside = true
				set(g, &command)
				knockOnce(t, mustPrepare(t, g, n, command))
				if syns.Load() != 0 {
					t.Error("a port was tried")
				}
			})
		})
	}
}

// WaitOpen needs one attempt on a long path.
func TestWaitOpenOnALongPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n, syns := longPath(t, func(int32) error { return nil })
		plan := mustPrepare(t, g, n, open())
		lab.Must(t, plan.WaitOpen(t.Context(), knockOnce(t, plan)))
		if syns.Load() != 1 {
			t.Errorf("%d connections were tried, want 1", syns.Load())
		}
	})
}
