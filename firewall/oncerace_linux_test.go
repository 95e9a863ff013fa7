package firewall

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// raceRounds is how often two flows race for one grant; SALLYPORT_ROUNDS=10000 tries more.
func raceRounds() int {
	if n, err := strconv.Atoi(os.Getenv("SALLYPORT_ROUNDS")); err == nil && n > 0 {
		return n
	}
	return 400
}

// TestOnceRace: two flows from two ports, sent at the same moment on two processors. Exactly one gets in.
func TestOnceRace(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Log("with one processor the two only take turns")
	}
	everyFamily(t, func(t *testing.T, f sides) {
		for _, proto := range []service.Proto{service.TCP, service.UDP} {
			t.Run(proto.String(), func(t *testing.T) { raceOnce(t, f, proto) })
		}
	})
}

func raceOnce(t *testing.T, f sides, proto service.Proto) {
	s := guarded(t, both(once("tcp/22", "udp/5000"), func(c *Config) { c.Closed = Reject }))
	fl := s.flows(proto, f)
	racers := newRacers(s, f, proto)
	in, close := 0, 0
	for range raceRounds() {
		fl.knock("alice")
		n, apart := racers.race(fl)
		if n != 1 {
			t.Fatalf("%d of two flows got in", n)
		}
		in += n
		if apart < 2*time.Microsecond {
			close++
		}
	}
	t.Logf("%d rounds, %d flows in; the two system calls began less than 2µs apart in %d", raceRounds(), in, close)
	fl.shut()
}

// racers are two threads, each on a processor of its own, that send at the same moment.
type racers struct {
	*site
	proto  service.Proto
	from   netip.Addr
	port   uint16 // of the last flow
	to     netip.AddrPort
	starts [2]chan *start
	done   sync.WaitGroup
}

// start is one round of one racer.
type start struct {
	fd    int
	ready *atomic.Int32
	at    time.Time
	err   error
}

func newRacers(s *site, f sides, proto service.Proto) *racers {
	port := map[service.Proto]string{service.TCP: "22", service.UDP: "5000"}[proto]
	to := netip.MustParseAddrPort(net.JoinHostPort(f.gateway, port))
	r := &racers{site: s, proto: proto, from: netip.MustParseAddr(f.alice), to: to, port: 10000}
	for i := range r.starts {
		r.starts[i] = make(chan *start)
		go r.run(i)
	}
	s.Cleanup(func() {
		for _, c := range r.starts {
			close(c)
		}
	})
	return r
}

// run sends what comes over the channel, from one processor.
func (r *racers) run(i int) {
	runtime.LockOSThread() // until the goroutine ends, and the thread with it
	var cpus unix.CPUSet
	cpus.Set(i % runtime.NumCPU())
	_ = unix.SchedSetaffinity(0, &cpus)
	for s := range r.starts[i] {
		to := lab.Sockaddr(r.to) // each its own: a call writes to it
		s.ready.Add(1)
		for s.ready.Load() < 2 {
		}
		s.at = time.Now()
		s.err = r.send1(s.fd, to)
		r.done.Done()
	}
}

func (r *racers) send1(fd int, to unix.Sockaddr) error {
	if r.proto == service.TCP {
		return unix.Connect(fd, to)
	}
	return unix.Sendto(fd, []byte("x"), 0, to)
}

// race returns how many flows got in, and how far apart they began.
func (r *racers) race(fl *flows) (in int, apart time.Duration) {
	r.Helper()
	var ready atomic.Int32
	starts := [2]*start{{ready: &ready}, {ready: &ready}}
	for _, s := range starts {
		s.fd = r.socket()
	}
	r.done.Add(2)
	for i, s := range starts {
		r.starts[i] <- s
	}
	r.done.Wait()
	for _, s := range starts {
		if r.entered(s) {
			in++
		}
		r.must(unix.Close(s.fd))
	}
	if r.proto == service.UDP {
		in = fl.datagrams()
	}
	return in, starts[0].at.Sub(starts[1].at).Abs()
}

// socket returns a socket that is bound to a port of alice's, and that ends with a reset.
func (r *racers) socket() (fd int) {
	r.Helper()
	kind := map[service.Proto]int{service.TCP: unix.SOCK_STREAM, service.UDP: unix.SOCK_DGRAM}[r.proto]
	r.port++ // each flow has a port of its own: one that used the port of an earlier flow would be that flow
	local := netip.AddrPortFrom(r.from, r.port)
	r.must(r.client.Do(func() (err error) {
		fd, err = unix.Socket(lab.Family(local), kind|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	r.must(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	r.must(unix.Bind(fd, lab.Sockaddr(local)))
	return fd
}

// entered reports whether a connection was made. One that was not is refused.
func (r *racers) entered(s *start) bool {
	r.Helper()
	if s.err != nil && !errors.Is(s.err, unix.ECONNREFUSED) {
		r.Fatal(s.err)
	}
	return s.err == nil
}

// datagrams returns how many datagrams have arrived: on this path they do before they are sent.
func (fl *flows) datagrams() (n int) {
	fl.Helper()
	fl.must(fl.server.SetReadDeadline(time.Now().Add(lab.Patience)))
	buf := make([]byte, 16)
	for {
		if _, _, err := fl.server.ReadFrom(buf); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return n
			}
			fl.Fatal(err)
		}
		n++
		fl.must(fl.server.SetReadDeadline(time.Now().Add(2 * time.Millisecond)))
	}
}
