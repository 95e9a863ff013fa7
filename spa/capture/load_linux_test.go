package capture

import (
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// blast sends n copies of payload as fast as the socket accepts them.
func blast(t testing.TB, conn *net.UDPConn, payload []byte, n int) {
	t.Helper()
	raw := lab.Value(conn.SyscallConn())(t)
	type message struct {
		header unix.Msghdr
		size   uint32
		_      [4]byte
	}
	const batch = 64
	iov := unix.Iovec{Base: unsafe.SliceData(payload)}
	iov.SetLen(len(payload))
	var pins runtime.Pinner
	defer pins.Unpin()
	pins.Pin(&iov)
	pins.Pin(iov.Base)
	messages := make([]message, batch)
	for i := range messages {
		messages[i].header.Iov = &iov
		messages[i].header.SetIovlen(1)
	}
	for n > 0 {
		lab.Must(t, raw.Write(func(fd uintptr) bool {
			sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd,
				uintptr(unsafe.Pointer(unsafe.SliceData(messages))), uintptr(min(n, batch)), 0, 0, 0)
			if errno == 0 {
				n -= int(sent)
			}
			return errno != unix.EAGAIN
		}))
	}
}

func TestKernelDropsAreCounted(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := listen(t, gateway, knocks)
	four, six := dialUDP(t, client, client4, gateway4), dialUDP(t, client, client6, gateway6)
	first := overflow(t, s, four)
	second := overflow(t, s, six)
	var queued uint64
	for _, v, ok := s.next(); ok; _, v, ok = s.next() {
		s.counts[v].Add(1)
		queued++
	}
	if room := uint64(ringSize / s.rings[0].size); queued < 2*room { // packets still on their way took the freed room
		t.Errorf("%d packets were queued, want %d", queued, 2*room)
	}
	blast(t, four, payload(200), 1)
	_, err := s.Read()
	lab.Must(t, err)
	third := overflow(t, s, four)
	lab.Must(t, s.Close())
	if got := s.Stats(); got.Passed != queued+1 || got.KernelDrops < third || third <= second || second <= first {
		t.Errorf("drops %d, %d, %d; after Close %+v, want %d passed", first, second, third, got, queued+1)
	}
}

// overflow sends until more packets are dropped than before.
func overflow(t *testing.T, s *Sniffer, conn *net.UDPConn) uint64 {
	t.Helper()
	before := s.Stats().KernelDrops
	lab.Eventually(t, "drops", func() bool {
		blast(t, conn, payload(200), 1000)
		return s.Stats().KernelDrops > before
	})
	return s.Stats().KernelDrops
}

func TestDropsSinceTheLastLookAreInTheLastStats(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := listen(t, gateway, knocks)
	flood(t, gateway, dialUDP(t, client, client4, gateway4))
	lab.Must(t, s.Close())
	if s.Stats().KernelDrops == 0 {
		t.Error("no drops are reported")
	}
}

// flood sends until all unread sniffers that were opened before on the host have dropped packets. It does not query
// them: it opens one more, and waits until that one has dropped some twice.
func flood(t *testing.T, h *lab.Host, conn *net.UDPConn) {
	t.Helper()
	other := listen(t, h, knocks)
	overflow(t, other, conn)
	overflow(t, other, conn)
}

// queue sends until a ring that was never read holds n packets: a busy host loses some on the way.
func queue(t *testing.T, r *ring, conn *net.UDPConn, n int) {
	t.Helper()
	nth := ring{memory: r.memory, size: r.size, next: (n - 1) * r.size}
	lab.Eventually(t, "packets in the ring", func() bool {
		blast(t, conn, payload(200), 100)
		_, held := nth.peek()
		return held
	})
}

func TestFloodInOneFamilyDoesNotStarveTheOther(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := listen(t, gateway, knocks)
	queue(t, s.rings[0], dialUDP(t, client, client4, gateway4), 1000)
	queue(t, s.rings[1], dialUDP(t, client, client6, gateway6), 1)
	for range 3 {
		p := lab.Value(s.Read())(t)
		if p.From.Addr().Is6() {
			return
		}
	}
	t.Error("IPv6 waits for IPv4's queue to be empty")
}

// After Close, the numbers of the sniffer's sockets may belong to other files.
func TestStatsAfterCloseAreItsOwn(t *testing.T) {
	client, gateway := lab.Pair(t)
	closed := listen(t, gateway, knocks)
	lab.Must(t, closed.Close())
	listen(t, gateway, knocks)
	flood(t, gateway, dialUDP(t, client, client4, gateway4))
	if n := closed.Stats().KernelDrops; n != 0 {
		t.Errorf("a closed sniffer reports %d drops", n)
	}
}

// A packet may be read before the netlink event that makes its address ours.
func TestPacketOvertakesNews(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := listen(t, gateway, knocks)
	lab.Must(t, gateway.AddAddr("vs", "198.51.100.7/32"))
	in := inject(t, client, "vc", gateway, "vs")
	in.send(t, in.frame(knock(client4, addrPort("198.51.100.7", 62201))))
	lab.Eventually(t, "the packet", func() bool { _, ok := s.rings[0].peek(); return ok })
	if _, v, _ := s.next(); v != passed {
		t.Errorf("verdict %d, want %d", v, passed)
	}
}

// Changes of the host are noticed even while packets arrive without pause.
func TestChangesAreSeenInAFlood(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := listen(t, gateway, knocks)
	queue(t, s.rings[0], dialUDP(t, client, client4, gateway4), 2*refreshEvery+1)
	lab.Must(t, gateway.DelAddr("vs", "192.0.2.1/24"))
	for range refreshEvery {
		_, err := s.Read()
		lab.Must(t, err)
	}
	go s.Read()
	lab.Eventually(t, "packets to the lost address to be noise", func() bool { return s.Stats().NotForUs > 0 })
}

func TestCloseWakesRead(t *testing.T) {
	gateway := lab.New(t, "gateway")[0]
	for range 5 {
		s := listen(t, gateway, knocks)
		ended := make(chan error, 1)
		go func() {
			_, err := s.Read()
			ended <- err
		}()
		runtime.Gosched()
		lab.Must(t, s.Close())
		select {
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Fatalf("Read ended with %v, want net.ErrClosed", err)
			}
		case <-time.After(lab.Patience):
			t.Fatal("Close did not wake Read")
		}
		if _, err := s.Read(); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("Read after Close: %v, want net.ErrClosed", err)
		}
		lab.Must(t, s.Close())
		s.Stats()
	}
}

// The packet that Read returned is not in the ring's memory, which Close unmaps.
func TestDataOutlivesClose(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := listen(t, gateway, knocks)
	blast(t, dialUDP(t, client, client4, gateway4), payload(200), 1)
	p := lab.Value(s.Read())(t)
	lab.Must(t, s.Close())
	if string(p.Data) != string(payload(200)) {
		t.Error("the data changed")
	}
}

func TestStatsWhileClosing(t *testing.T) {
	gateway := lab.New(t, "gateway")[0]
	s := listen(t, gateway, knocks)
	var looked atomic.Bool
	stop := lab.Repeat(func() { s.Stats(); looked.Store(true) })
	lab.Eventually(t, "Stats", looked.Load)
	lab.Must(t, s.Close())
	stop()
}

// Noise that has used up its host refreshes is judged by the known state.
func TestNoiseLooksSeldom(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := listen(t, gateway, knocks)
	in := inject(t, client, "vc", gateway, "vs")
	in.send(t, in.frame(knock(client4, addrPort("203.0.113.1", 62201))))
	lab.Eventually(t, "the packet", func() bool { _, ok := s.rings[0].peek(); return ok })
	f, _ := s.rings[0].peek()
	for range looks + 1 {
		lab.Must(t, gateway.AddAddr("vs", "198.51.100.1/32"))
		lab.Must(t, gateway.DelAddr("vs", "198.51.100.1/32"))
		if _, v := s.judge(f, false); v != notForUs {
			t.Fatalf("verdict %d", v)
		}
	}
	if _, err := s.host.events.receive(); err != nil {
		t.Errorf("no news is left: %v", err)
	}
}

func TestReadDoesNotAllocate(t *testing.T) {
	client, gateway := lab.Pair(t)
	s := listen(t, gateway, knocks)
	conn := dialUDP(t, client, client4, gateway4)
	queue(t, s.rings[0], conn, 1001)
	got := testing.AllocsPerRun(1000, func() {
		_, err := s.Read()
		lab.Must(t, err)
	})
	if got != 0 {
		t.Errorf("Read allocates %v times", got)
	}
}

// BenchmarkFlood sends and reads one packet as fast as one sender can: see the drops.
func BenchmarkFlood(b *testing.B) {
	client, gateway := lab.Pair(b)
	s := listen(b, gateway, knocks)
	lab.Must(b, gateway.Do(dropAll)) // as the guard does
	conn := dialUDP(b, client, client4, gateway4)
	lab.Must(b, conn.SetDeadline(time.Time{}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := s.Read(); err != nil {
				return
			}
		}
	}()
	b.ReportAllocs()
	b.ResetTimer()
	blast(b, conn, payload(200), b.N)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
	lab.Must(b, s.Close())
	<-ended
	b.ReportMetric(float64(s.Stats().Passed)/float64(b.N)*100, "%passed")
	b.ReportMetric(float64(s.Stats().KernelDrops)/float64(b.N)*100, "%dropped")
}

// BenchmarkNotForUs judges a packet that is not for this host, which makes it check whether that has changed.
func BenchmarkNotForUs(b *testing.B) {
	client, gateway := lab.Pair(b)
	s := listen(b, gateway, knocks)
	in := inject(b, client, "vc", gateway, "vs")
	in.send(b, in.frame(knock(client4, addrPort("192.0.2.77", 62201))))
	lab.Must(b, s.wait())
	f, ok := s.rings[0].peek()
	if !ok {
		b.Fatal("no packet")
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, v := s.judge(f, false); v != notForUs {
			b.Fatal(v)
		}
	}
}

// BenchmarkLoneKnock is the time from a send to Read's return on an idle host.
func BenchmarkLoneKnock(b *testing.B) {
	client, gateway := lab.Pair(b)
	s := read(b, listen(b, gateway, knocks))
	lab.Must(b, gateway.Do(dropAll)) // no ICMP answer
	conn := dialUDP(b, client, client4, gateway4)
	lab.Must(b, conn.SetDeadline(time.Time{}))
	data := payload(200)
	for b.Loop() {
		_, err := conn.Write(data)
		lab.Must(b, err)
		<-s.packets
	}
}
