package doctor

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// only looks up the one client of a profile.
type only struct{ profile *keys.Profile }

func (o only) Lookup(id keys.ID) (keys.Credential, bool) {
	p := o.profile
	return keys.Credential{Client: keys.Client{Name: p.Client, ID: p.ID, Key: p.Key}, ID: id, Key: p.Key}, id == p.ID
}

// answering runs a gateway on an address of this machine that refuses everything, and so answers. It returns its
// profile.
func answering(t *testing.T, addr string) *keys.Profile {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
	lab.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	p := &keys.Profile{Name: "gw", Address: addr, KnockPorts: []uint16{uint16(conn.LocalAddr().(*net.UDPAddr).Port)},
		ServerID: keys.NewServerID(),
		Gate:     keys.NewGateKey(), Client: "alice", ID: keys.NewID(), Key: keys.NewKey(), Receipts: true}
	identity := &spa.Identity{Server: p.ServerID, Gates: []spa.Gate{{Key: p.Gate}}, Window: time.Hour}
	go func() {
		b := make([]byte, 2*spa.MaxLen)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			k, err := spa.Open(b[:n], identity, only{p}, time.Now())
			if err != nil {
				continue // doctor sends noise too
			}
			sealed, err := spa.SealReceipt(spa.Receipt{Status: spa.ReasonNotAllowed, Time: time.Now()}, &k, p.ServerID)
			if err != nil {
				t.Error(err)
			}
			conn.WriteToUDPAddrPort(sealed, from)
		}
	}()
	return p
}

// TestOneAddressIsDead: if one address answers and another does not, that is a certain finding, in either order.
func TestOneAddressIsDead(t *testing.T) {
	const alive, dead = "127.0.0.1", "127.0.0.77"
	for _, order := range [][]string{{alive, dead}, {dead, alive}} {
		t.Run(order[0]+" first", func(t *testing.T) {
			e := &examination{ctx: t.Context(), profile: answering(t, alive), services: []service.Service{{Name: "ssh"}},
				options: Options{Timeout: lab.Patience / 30}}
			for _, addr := range order {
				e.families = append(e.families, newFamily(netip.MustParseAddr(addr)))
			}
			for i, f := range e.knock() {
				want, says := Good, " answers"
				if order[i] == dead {
					want, says = Bad, " does not answer, but another address does: "
				}
				if f.State != want || !strings.Contains(f.Text, order[i]+says) {
					t.Errorf("got %s %q, want %s", f.State, f.Text, want)
				}
			}
		})
	}
}
