package firewall

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestGrantOpensJustThat: a grant opens each port at each address of a service, or here if the service has none.
func TestGrantOpensJustThat(t *testing.T) {
	inside := []netip.Addr{netip.MustParseAddr("198.51.100.5"), netip.MustParseAddr("::ffff:198.51.100.6")}
	for _, to := range [][]netip.Addr{nil, inside[:1], inside} {
		k := newKept(t)
		g := portGrant("alice", k.now.Add(time.Hour), "tcp/22")
		g.Ports = []service.Ports{ports("tcp/22"), ports("udp/30-32"), ports("tcp/40"), ports("tcp/50"), ports("tcp/60")}
		g.To = to
		places := []netip.Addr{{}} // here
		if to != nil {
			places = nil
		}
		for _, a := range to {
			places = append(places, a.Unmap())
		}
		want := make(map[guard.Element]time.Duration)
		for _, at := range places {
			for _, p := range g.Ports {
				for port := p.Low; port <= p.High; port++ {
					want[guard.Element{Source: g.Source, To: at, Proto: p.Proto, Port: port}] = time.Hour
				}
			}
		}
		lab.Must(t, k.Grant(t.Context(), []Grant{g}, k.now))
		if !maps.Equal(k.kernel.lasts, want) {
			t.Errorf("to %v: the kernel has %v, want %v", to, k.kernel.lasts, want)
		}
		for _, held := range k.Grants(k.now) {
			if at := append(held.To, netip.Addr{})[0]; !slices.Contains(places, at) {
				t.Errorf("to %v: %v is held at %v", to, held.Ports, at)
			}
		}
	}
}

// TestRevokedInOrder: lists of grants, and of revoked grants, are sorted.
func TestRevokedInOrder(t *testing.T) {
	k := newKept(t)
	var gs []Grant
	for port := range uint16(9) {
		g := portGrant(string('i'-rune(port)), k.now.Add(time.Hour))
		g.Ports = []service.Ports{{Proto: service.TCP, Low: 100 + port, High: 100 + port}}
		gs = append(gs, g)
	}
	lab.Must(t, k.Grant(t.Context(), gs, k.now))
	if held := k.Grants(k.now); len(held) != len(gs) || !slices.IsSortedFunc(held, compareGrants) {
		t.Errorf("held: %v", held)
	}
	if ended, err := k.Revoke(t.Context(), Match{}, k.now); err != nil || len(ended) != len(gs) ||
		!slices.IsSortedFunc(ended, compareGrants) {
		t.Errorf("got %v, %v", ended, err)
	}
}

// TestOneOfTwoEnds: a client's remaining grant is found after its other grant has ended.
func TestOneOfTwoEnds(t *testing.T) {
	k := newKept(t)
	gs := []Grant{portGrant("alice", k.now.Add(time.Minute), "tcp/22"), portGrant("alice", k.now.Add(time.Hour), "tcp/80")}
	lab.Must(t, k.Grant(t.Context(), gs, k.now))
	k.passes(time.Minute, 0)
	k.wakes()
	if held := k.GrantsOf("alice", k.now); len(held) != 1 {
		t.Errorf("held: %v", held)
	}
	if ended, err := k.Revoke(t.Context(), Match{Client: "alice"}, k.now); err != nil || len(ended) != 1 {
		t.Errorf("revoked: %v, %v", ended, err)
	}
	if len(k.inMemory())+len(k.onDisk())+len(k.inKernel()) != 0 {
		t.Error("a grant is held")
	}
}
