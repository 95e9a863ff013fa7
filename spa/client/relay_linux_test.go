package client_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// How the bad network treats each packet in each direction.
const (
	lost       = 0.30
	duplicated = 0.10
	maxDelay   = 300 * time.Millisecond // for each copy separately: packets overtake each other
)

// relay carries the datagrams of one client to a gateway and back over a bad network. The gateway sees them come from
// their own address.
type relay struct {
	front, back *net.UDPConn // towards the client and the gateway
	to          netip.AddrPort
	running     sync.WaitGroup
	done        chan struct{}

	mu     sync.Mutex
	client netip.AddrPort
}

// newRelay makes a relay that sends from an address of a host. The seed determines the fate of the n-th packet in each
// direction.
func newRelay(h *lab.Host, from netip.Addr, to netip.AddrPort, seed uint64) (*relay, error) {
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	r := &relay{front: front, to: to, done: make(chan struct{})}
	err = h.Do(func() error {
		conn, err := (&net.ListenConfig{Control: free}).ListenPacket(context.Background(), "udp6",
			netip.AddrPortFrom(from, 0).String())
		if err == nil {
			r.back = conn.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		front.Close()
		return nil, err
	}
	r.running.Go(func() { r.carry(r.front, r.forward, rand.New(rand.NewPCG(seed, 1))) })
	r.running.Go(func() { r.carry(r.back, r.backward, rand.New(rand.NewPCG(seed, 2))) })
	return r, nil
}

// free lets a socket bind an address that no interface has, but a route does.
func free(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6,
			unix.IPV6_FREEBIND, 1)
	}); e != nil {
		return e
	}
	return err
}

// port returns where the client sends.
func (r *relay) port() uint16 { return r.front.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// carry takes packets from one side and delivers each to the other not at all, once or twice.
func (r *relay) carry(from *net.UDPConn, give func([]byte), chance *rand.Rand) {
	buf := make([]byte, 2048)
	for {
		n, source, err := from.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if from == r.front {
			r.mu.Lock()
			r.client = source
			r.mu.Unlock()
		}
		copies := 1
		if chance.Float64() < duplicated {
			copies = 2
		}
		for range copies {
			late := time.Duration(chance.Int64N(int64(maxDelay)))
			if chance.Float64() < lost {
				continue
			}
			packet := append([]byte(nil), buf[:n]...)
			r.running.Go(func() { r.later(late, func() { give(packet) }) })
		}
	}
}

func (r *relay) later(d time.Duration, give func()) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		give()
	case <-r.done:
	}
}

func (r *relay) forward(packet []byte) { r.back.WriteToUDPAddrPort(packet, r.to) }

func (r *relay) backward(packet []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.front.WriteToUDPAddrPort(packet, r.client)
}

func (r *relay) close() {
	close(r.done)
	r.front.Close()
	r.back.Close()
	r.running.Wait()
}

// prefix is a network in which each client of the relays has an address.
var prefix = netip.MustParsePrefix("2001:db8:1::/64")

// address returns the i-th address of the prefix.
func address(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", i+1)) }

// routePrefix makes all addresses of the prefix the client host's own, and gives the gateway a route to them.
func routePrefix(t *testing.T, g *lab.Gateway) {
	t.Helper()
	lab.Must(t, g.Host.Route(prefix.String(), "2001:db8::2"))
	lab.Must(t, g.Client.Local(prefix.String()))
}
