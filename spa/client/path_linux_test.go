package client_test

import (
	"encoding/binary"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// The addresses of the ends of a path.
const (
	far4, near4 = "198.51.100.1", "198.51.100.2"
	far6, near6 = "2001:db8:5::1", "2001:db8:5::2"
)

// kind is what a packet is on a path between client and gateway.
type kind int

const (
	other   kind = iota
	knock        // a datagram to the gateway
	receipt      // a datagram from it
	syn          // from the client
	synAck
	reset // from the gateway, or its ICMP error
)

// path carries packets between two hosts by tunnels, in order, each a while later, unless the test has something else
// in mind for one.
type path struct {
	client, gateway *os.File
	delay           time.Duration

	mu   sync.Mutex
	fate func(k kind, six bool) (later time.Duration, lost bool) // nil: the usual one
	syns map[uint16]int                                          // by their source port
	seen map[kind]int
	soon bool // there was a SYN before the gateway sent a receipt
}

// newPath joins the hosts of a gateway.
func newPath(t testing.TB, g *lab.Gateway, delay time.Duration) *path {
	t.Helper()
	p := &path{client: tunnel(t, g.Client, near4, near6), gateway: tunnel(t, g.Host, far4, far6), delay: delay}
	p.forget(nil)
	var running sync.WaitGroup
	running.Go(func() { p.carry(p.client, p.gateway, true) })
	running.Go(func() { p.carry(p.gateway, p.client, false) })
	t.Cleanup(func() {
		p.client.Close()
		p.gateway.Close()
		running.Wait()
	})
	return p
}

// tunnel makes a tunnel device with two addresses and returns its other end.
func tunnel(t testing.TB, h *lab.Host, four, six string) *os.File {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("this kernel has no tunnels: ", err)
	}
	fd := -1
	lab.Must(t, h.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		r := lab.Value(unix.NewIfreq("slow0"))(t)
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}))
	lab.Must(t, h.AddAddr("slow0", four+"/24"))
	lab.Must(t, h.SetUp("slow0"))
	lab.Must(t, h.AddAddr("slow0", six+"/64"))
	return os.NewFile(uintptr(fd), "slow0")
}

// forget begins a new count, with another fate for packets.
func (p *path) forget(fate func(kind, bool) (time.Duration, bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fate, p.syns, p.seen, p.soon = fate, map[uint16]int{}, map[kind]int{}, false
}

// counts returns how many connections were tried, how many SYNs were sent more than once, and the packets by kind.
func (p *path) counts() (tried, again int, seen map[kind]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.syns {
		again += n - 1
	}
	return len(p.syns), again, p.seen
}

// beside reports whether a SYN was sent before the gateway sent a receipt.
func (p *path) beside() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.soon
}

// carry delivers packets from one end to the other.
func (p *path) carry(from, to *os.File, forward bool) {
	type parcel struct {
		due  time.Time
		data []byte
	}
	queue := make(chan parcel, 10_000)
	defer close(queue)
	go func() {
		for next := range queue {
			time.Sleep(time.Until(next.due))
			to.Write(next.data)
		}
	}()
	for buf := make([]byte, 4096); ; {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		data := append([]byte(nil), buf[:n]...)
		later, lost := p.decide(data, forward)
		switch {
		case lost:
		case later > 0:
			time.AfterFunc(p.delay+later, func() { to.Write(data) })
		default:
			queue <- parcel{time.Now().Add(p.delay), data}
		}
	}
}

// decide counts a packet and returns its fate.
func (p *path) decide(data []byte, forward bool) (time.Duration, bool) {
	k, port := kindOf(data, forward)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[k]++
	if k == syn {
		p.syns[port]++
		p.soon = p.soon || p.seen[receipt] == 0
	}
	if p.fate == nil {
		return 0, false
	}
	return p.fate(k, data[0]>>4 == 6)
}

// kindOf returns what an IP packet without options is, and its source port.
func kindOf(data []byte, forward bool) (kind, uint16) {
	proto, rest := data[9], data[20:]
	if data[0]>>4 == 6 {
		proto, rest = data[6], data[40:]
	}
	port := binary.BigEndian.Uint16(rest)
	switch {
	case proto == unix.IPPROTO_UDP && forward:
		return knock, port
	case proto == unix.IPPROTO_UDP:
		return receipt, port
	case proto == unix.IPPROTO_ICMP && !forward, proto == unix.IPPROTO_ICMPV6 && !forward && rest[0] == 1:
		return reset, 0
	case proto != unix.IPPROTO_TCP:
		return other, 0
	}
	const fin, synFlag, rst, ack = 1, 2, 4, 16
	switch flags := rest[13]; {
	case forward && flags&(synFlag|ack) == synFlag:
		return syn, port
	case !forward && flags&synFlag != 0:
		return synAck, port
	case !forward && flags&rst != 0:
		return reset, port
	}
	return other, port
}
