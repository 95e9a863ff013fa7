package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// Ports of the law's gateways. Cases are sent from the ports from firstCase on, so that a port identifies its case.
const (
	openPort   = 8000 // open to all hosts, tcp and udp
	markerPort = 8999 // udp; see flush
	firstCase  = 10000
	lastCase   = 65000
)

// lawService is a guarded port with a server.
type lawService struct {
	proto service.Proto
	port  uint16
	cut   bool   // its sessions end with the grant
	alias uint16 // an open port that may lead to it
	front uint16 // a guarded port that may lead to it on the machine behind
}

var lawServices = []lawService{
	{service.TCP, 22, false, 8022, 2222},
	{service.TCP, 2022, true, 8023, 2223},
	{service.UDP, 5300, false, 8053, 5322},
	{service.UDP, 5310, true, 8054, 5323},
}

func (s *lawService) String() string {
	return fmt.Sprintf("%v/%d %s", s.proto, s.port, map[bool]string{false: "keep", true: "cut"}[s.cut])
}

// sign is something that must not be seen of a case.
type sign uint16

const (
	signHeard    sign = 1 << iota // a packet was delivered to the guarded socket
	signAccepted                  // a connection was accepted
	signHalfOpen                  // the listener has half a connection
	signReceived                  // a datagram was read
	signError                     // an ICMP error is in the socket's queue
	signLeft                      // the guarded port sent something to the stranger
	signReset                     // a reset from the guarded port
	signICMP                      // an ICMP error about the guarded port
	signLoop                      // the guarded port answered by the loopback interface
)

var signNames = []string{"delivered", "accepted", "half open", "received", "ICMP error delivered", "answered", "reset",
	"ICMP error sent", "answered over lo"}

func (s sign) String() string {
	var all []string
	for i, name := range signNames {
		if s&(1<<i) != 0 {
			all = append(all, name)
		}
	}
	return strings.Join(all, ", ")
}

// sight is what was seen, by family, protocol and port of the case.
type sight struct {
	signs [2][2][]sign
	half  map[lawKey]bool      // connections that were half open before
	peer  [2]map[uint16]uint32 // by family: the sequence number of a SYN+ACK that the stranger got
}

// lawKey is a case of TCP.
type lawKey struct {
	six  bool
	port uint16
}

func newSight() *sight {
	s := &sight{half: make(map[lawKey]bool)}
	for f := range 2 {
		s.peer[f] = make(map[uint16]uint32)
		for p := range 2 {
			s.signs[f][p] = make([]sign, tallyPorts)
		}
	}
	return s
}

func familyIndex(six bool) int {
	if six {
		return 1
	}
	return 0
}

func protoIndex(p service.Proto) int {
	if p == service.UDP {
		return 1
	}
	return 0
}

func (s *sight) add(six bool, proto service.Proto, port uint16, what sign) {
	if port >= firstCase {
		s.signs[familyIndex(six)][protoIndex(proto)][port] |= what
	}
}

// server is a socket behind a guarded port.
type server struct {
	lawService
	six     bool
	host    *lab.Host
	fd      int
	count   *tally
	refused atomic.Int32   // errors about datagrams that belong to no case
	clients map[uint16]int // connections, by the client's port
}

// serveLaw makes the servers of all services on a host.
func (w *world) serveLaw(h *lab.Host) []*server {
	w.Helper()
	var all []*server
	for _, six := range []bool{false, true} {
		for _, sv := range lawServices {
			s := &server{lawService: sv, six: six, host: h, fd: -1, clients: make(map[uint16]int)}
			var err error
			if s.count, err = newTally(); err != nil {
				w.lacks["sockets that count (eBPF): "+err.Error()] = true
			}
			all = append(all, s)
			w.Cleanup(func() { s.close(); s.count.close() })
		}
	}
	return all
}

// open begins to serve, and ends what an earlier server left.
func (s *server) open(w *world) error {
	s.close()
	s.count.clear()
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if s.six {
		family = unix.AF_INET6
	}
	if s.proto == service.UDP {
		kind = unix.SOCK_DGRAM
	}
	var err error
	if s.fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	set := func(level, name, value int) { err = errors.Join(err, unix.SetsockoptInt(s.fd, level, name, value)) }
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) // see dial
	roomy(s.fd)
	to := unix.Sockaddr(&unix.SockaddrInet4{Port: int(s.port)})
	if s.six {
		set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		to = &unix.SockaddrInet6{Port: int(s.port)}
	} else {
		set(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	}
	if w.way.transparent {
		if s.six {
			set(unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 1)
		} else {
			set(unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
		}
	}
	if s.count != nil {
		err = errors.Join(err, s.count.attach(s.fd))
	}
	err = errors.Join(err, bind(s.fd, to))
	if s.proto == service.TCP {
		err = errors.Join(err, unix.Listen(s.fd, 1<<16))
	}
	return err
}

// bind binds a socket. It retries: a process that is just starting may still hold a copy of a closed one.
func bind(fd int, to unix.Sockaddr) error {
	for deadline := time.Now().Add(lab.Patience); ; {
		err := unix.Bind(fd, to)
		if err != unix.EADDRINUSE || time.Now().After(deadline) {
			return os.NewSyscallError("bind", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// roomy gives a socket room for everything that arrives between two looks, as far as this user may.
func roomy(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
}

func (s *server) close() {
	s.hangUp()
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
	s.fd = -1
}

// hangUp ends all connections without a packet.
func (s *server) hangUp() {
	for port, c := range s.clients {
		unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
		unix.Close(c)
		delete(s.clients, port)
	}
}

// look reads what the server has received.
func (s *server) look(see *sight) {
	if s.proto == service.TCP {
		s.accept(see)
	} else {
		s.receive(see)
	}
	s.errors(see)
}

func portOf(a unix.Sockaddr) uint16 {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}

func (s *server) accept(see *sight) {
	for {
		c, from, err := unix.Accept4(s.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			break
		}
		see.add(s.six, s.proto, portOf(from), signAccepted)
		s.clients[portOf(from)] = c
	}
	b := make([]byte, 2048)
	for port, c := range s.clients {
		if port >= firstCase {
			continue
		}
		n, err := unix.Read(c, b)
		if n == 0 && err == nil || err != nil && err != unix.EAGAIN {
			unix.Close(c)
			delete(s.clients, port)
			continue
		}
		if n > 0 {
			unix.Write(c, b[:n])
		}
	}
}

func (s *server) receive(see *sight) {
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(s.fd, b, 0)
		if err == unix.EAGAIN {
			return
		}
		if err != nil {
			continue // an error from the error queue, reported once
		}
		port := portOf(from)
		see.add(s.six, s.proto, port, signReceived)
		if port < firstCase {
			unix.Sendto(s.fd, append([]byte(serverSays), b[:n]...), 0, from)
		}
	}
}

func (s *server) errors(see *sight) {
	b, oob := make([]byte, 512), make([]byte, 512)
	for {
		_, _, _, to, err := unix.Recvmsg(s.fd, b, oob, unix.MSG_ERRQUEUE)
		if err != nil {
			return
		}
		see.add(s.six, s.proto, portOf(to), signError)
		if portOf(to) < firstCase {
			s.refused.Add(1)
		}
	}
}

// speak makes the server send something of its own.
func (s *server) speak(to netip.AddrPort) {
	if s.proto == service.TCP {
		if c, ok := s.clients[to.Port()]; ok {
			unix.Write(c, []byte(serverSays+"unasked"))
		}
		return
	}
	_ = unix.Sendto(s.fd, []byte(serverSays+"unasked"), 0, lab.Sockaddr(to)) // EPERM if a guard forbids it
}

// dial has a process of the gateway try to connect from the server's own port, and give up.
func (s *server) dial(to netip.AddrPort) error {
	return s.host.Do(func() error {
		family, from := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(s.port)})
		if s.six {
			family, from = unix.AF_INET6, &unix.SockaddrInet6{Port: int(s.port)}
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return err
		}
		if err := bind(fd, from); err != nil {
			return err
		}
		if err := unix.Connect(fd, lab.Sockaddr(to)); err != unix.EINPROGRESS {
			return os.NewSyscallError("connect", err)
		}
		return nil
	})
}

// halfOpen calls each with every half-open connection to a guarded port.
func (w *world) halfOpen(each func(lawKey)) {
	w.Helper()
	for _, h := range []*lab.Host{w.gw, w.inner} {
		w.must(h.Do(func() error {
			for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
				sockets, err := netlink.SocketDiagTCP(family)
				if err != nil {
					return fmt.Errorf("listing sockets: %w", err)
				}
				for _, s := range sockets {
					if s.State == netlink.TCP_SYN_RECV && isServed(s.ID.SourcePort) {
						each(lawKey{s.Family == unix.AF_INET6, s.ID.DestinationPort})
					}
				}
			}
			return nil
		}))
	}
}

func isServed(port uint16) bool {
	for _, s := range lawServices {
		if s.port == port {
			return true
		}
	}
	return false
}

// isDoor reports whether a port is one of a guarded service, or leads to it.
func isDoor(proto service.Proto, port uint16) bool {
	for _, s := range lawServices {
		if s.proto == proto && (port == s.port || port == s.alias || port == s.front) {
			return true
		}
	}
	return false
}
