package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

var errDropped = errors.New("refused")

// blind returns a gateway that sends no receipts, and whose ports accept after a while.
func blind(t *testing.T, after time.Duration) (*gateway, *fakeNet) {
	g, n := fakes(t)
	g.profile.Receipts = false
	g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
	start := time.Now()
	n.tcp = func(_ netip.Addr, to netip.AddrPort) error {
		if time.Since(start) < after {
			return errDropped
		}
		return nil
	}
	return g, n
}

func TestProbeInsteadOfReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := blind(t, 300*time.Millisecond)
		start := time.Now()
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if a.Verdict != Opened || a.Receipt != nil || a.Gateway != gate4 || !a.Until(0).IsZero() {
			t.Errorf("got %+v, want open without a receipt", a)
		}
		if waited := time.Since(start); waited < 300*time.Millisecond || waited > time.Second {
			t.Errorf("found the port open after %v", waited)
		}
		if knocks, _, _ := g.seen(); len(knocks) < 2 || a.Tries != len(knocks) {
			t.Errorf("sent %d packets and says %d, want retries in that time", len(knocks), a.Tries)
		}
	})
}

// Without receipts in the profile, one that comes anyway is ignored.
func TestBlindReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := blind(t, time.Hour)
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return spa.Granted }
		start := time.Now()
		a := knockOnce(t, mustPrepare(t, g, n, open()))
		if a.Verdict != Silent || !errors.Is(a.Err, ErrNoAnswer) || a.Tries != 16 || time.Since(start) != DefaultTimeout {
			t.Errorf("got %+v after %v, want no answer", a, time.Since(start))
		}
	})
}

// All services must accept: one of them may have been open before.
func TestProbeAllServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := blind(t, 0)
		n.tcp = func(_ netip.Addr, to netip.AddrPort) error {
			if to.Port() == 22 {
				return nil
			}
			return errDropped
		}
		c := open()
		c.Services = []service.Service{{Name: "ssh"}, {Proto: service.TCP, Port: 8443}}
		if a := knockOnce(t, mustPrepare(t, g, n, c)); a.Verdict != Silent {
			t.Errorf("got %v though tcp/8443 is shut", a.Verdict)
		}
	})
}

// An unanswered SYN is retried before the system would resend it.
func TestProbeStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := blind(t, 0)
		var dials atomic.Int32
		n.tcp = func(netip.Addr, netip.AddrPort) error {
			dials.Add(1)
			return errDropped
		}
		c := open()
		c.Timeout = 500 * time.Millisecond
		knockOnce(t, mustPrepare(t, g, n, c))
		if dials := dials.Load(); dials < 4 || dials > 6 { // after 0, 20, 60, 140, 300 ms
			t.Errorf("%d attempts in 500 ms", dials)
		}
	})
}

func TestProbeEachAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := blind(t, 0)
		second := netip.MustParseAddr("192.0.2.3")
		n.hosts, n.route[second] = map[string][]netip.Addr{"gw.example.net": {gate4, second}}, private
		g.profile.Address, g.profile.KnockPorts = "gw.example.net", []uint16{1, 2}
		n.tcp = func(_ netip.Addr, to netip.AddrPort) error {
			if to.Addr() == second {
				return nil
			}
			return errDropped
		}
		if a := knockOnce(t, mustPrepare(t, g, n, open())); a.Verdict != Opened || a.Gateway != second {
			t.Errorf("got %v by %v, want open by %v", a.Verdict, a.Gateway, second)
		}
	})
}

func TestNothingCanConfirm(t *testing.T) {
	for name, c := range map[string]Command{
		"a close":             {Type: spa.TypeClose, Services: ssh},
		"a UDP service":       {Type: spa.TypeOpen, Services: []service.Service{{Name: "vpn"}}},
		"one of two is UDP":   {Type: spa.TypeOpen, Services: []service.Service{{Name: "ssh"}, {Name: "vpn"}}},
		"an unknown service":  {Type: spa.TypeOpen, Services: []service.Service{{Name: "new"}}},
		"a UDP port's number": {Type: spa.TypeOpen, Services: []service.Service{{Proto: service.UDP, Port: 53}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := blind(t, 0)
				start := time.Now()
				a := knockOnce(t, mustPrepare(t, g, n, c))
				knocks, _, _ := g.seen()
				if a.Verdict != Sent || a.Tries != 3 || len(knocks) != 3 || time.Since(start) > time.Second {
					t.Errorf("got %v with %d packets after %v, want 3 sent", a.Verdict, a.Tries, time.Since(start))
				}
			})
		})
	}
}

func TestEachKnockPortGetsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := blind(t, 0)
		g.profile.KnockPorts = []uint16{1, 2, 3, 4, 5}
		knockOnce(t, mustPrepare(t, g, n, Command{Type: spa.TypeClose, Services: ssh}))
		if _, to, _ := g.seen(); len(to) != 5 || to[4].Port() != 5 {
			t.Errorf("knocked on %v, want each port once", to)
		}
	})
}

func TestBlindTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := blind(t, time.Hour)
		down := errors.New("network is down")
		n.udp = func(*fakeConn, []byte, netip.AddrPort) error { return down }
		for _, c := range []Command{open(), {Type: spa.TypeClose, Services: ssh}} {
			if a := knockOnce(t, mustPrepare(t, g, n, c)); a.Verdict != Silent || !errors.Is(a.Err, down) {
				t.Errorf("%v: got %v, %v, want what the system said", c.Type, a.Verdict, a.Err)
			}
		}
	})
}

func TestBlindCancel(t *testing.T) {
	for _, c := range []Command{open(), {Type: spa.TypeClose, Services: ssh}} {
		synctest.Test(t, func(t *testing.T) {
			g, n := blind(t, time.Hour)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(100*time.Millisecond, cancel)
			start := time.Now()
			for a := range mustPrepare(t, g, n, c).Knock(ctx) {
				t.Errorf("got %+v once cancelled", a)
			}
			if waited := time.Since(start); waited != 100*time.Millisecond {
				t.Errorf("returned after %v", waited)
			}
		})
	}
}

func TestWaitOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		n.route[gate4] = public4
		plan := mustPrepare(t, g, n, open())
		a := knockOnce(t, plan)
		var ports []uint16
		start := time.Now()
		n.tcp = func(local netip.Addr, to netip.AddrPort) error {
			if local != public4 || to.Addr() != gate4 {
				t.Errorf("connected from %v to %v", local, to)
			}
			if time.Since(start) < 200*time.Millisecond {
				return errDropped
			}
			ports = append(ports, to.Port())
			return nil
		}
		a.Receipt.Services = []spa.Granting{
			{Ports: []service.Ports{{Proto: service.UDP, Low: 60000, High: 60010}, {Proto: service.TCP, Low: 22, High: 24}}},
			{Ports: []service.Ports{{Proto: service.TCP, Low: 443, High: 443}}},
		}
		if err := plan.WaitOpen(t.Context(), a); err != nil || !slices.Equal(ports, []uint16{22, 443}) {
			t.Errorf("got %v after connecting to %v, want 22 and 443", err, ports)
		}
		a.Receipt.Services = a.Receipt.Services[:1]
		a.Receipt.Services[0].Ports = a.Receipt.Services[0].Ports[:1]
		if err := plan.WaitOpen(t.Context(), a); !errors.Is(err, ErrNoTCP) {
			t.Errorf("UDP only: got %v, want ErrNoTCP", err)
		}
		a.Receipt = nil
		if err := plan.WaitOpen(t.Context(), a); err != nil {
			t.Errorf("probed already: got %v", err)
		}
	})
}

func TestWaitOpenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := fakes(t)
		n.tcp = func(netip.Addr, netip.AddrPort) error { return errDropped }
		plan := mustPrepare(t, g, n, open())
		a := knockOnce(t, plan)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if err := plan.WaitOpen(ctx, a); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

// The system's sockets, on the loopback interface: a closed port answers with ICMP errors, and a receipt may come from
// another address than the knock was sent to.
func TestSystem(t *testing.T) {
	g := newGateway(t)
	conn := lab.Value(net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
	to := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	other := lab.Value(net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
	defer other.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			other.WriteToUDPAddrPort(g.receive(buf[:n], to), from)
		}
	}()
	g.profile.Address = to.String()
	c := open()
	c.Timeout = time.Minute
	plan := lab.Value(Prepare(t.Context(), g.profile, c))(t)
	if a := knockOnce(t, plan); a.Verdict != Opened {
		t.Errorf("got %v, %v, want open", a.Verdict, a.Err)
	}
	conn.Close()
	<-done
	for _, c.Timeout = range []time.Duration{200 * time.Millisecond, time.Minute} {
		plan = lab.Value(Prepare(t.Context(), g.profile, c))(t)
		a := knockOnce(t, plan)
		if !errors.Is(a.Err, ErrNoAnswer) {
			t.Errorf("a closed port: got %v, want no answer", a.Err)
		}
		if a.Tries > 1 {
			return
		}
	}
	t.Error("a closed port: no second packet")
}

// The profile's services are text: an entry that cannot be parsed counts as unknown.
func TestPortsOfAService(t *testing.T) {
	plan := &Plan{Profile: &keys.Profile{Services: map[string][]string{"mosh": {"tcp/22", "nonsense", "udp/60000-60010"}}}}
	got := plan.Ports(service.Service{Name: "mosh"})
	if len(got) != 2 || got[0].String() != "tcp/22" || got[1].String() != "udp/60000-60010" {
		t.Errorf("got %v", got)
	}
	if got := plan.Ports(service.Service{Proto: service.TCP, Port: 8443}); len(got) != 1 || got[0].String() != "tcp/8443" {
		t.Errorf("got %v", got)
	}
}
