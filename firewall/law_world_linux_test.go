package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// The networks of a world. Strangers are at ve (and at a second link, vt), a client that holds
// grants is at vs, a machine that may be behind the gateway is at in.
//
//	evil --- ve  gateway  vs --- client 192.0.2.2   2001:db8::2
//	evil --- vt           in --- inner  198.51.100.5 2001:db8:1::5
var lawAddrs = map[string][2]string{
	"stranger":             {"203.0.113.7", "2001:db8:e::7"},
	"ex-client":            {"203.0.113.6", "2001:db8:e::6"},
	"gateway":              {"203.0.113.1", "2001:db8:e::1"},
	"gateway's other":      {"192.0.2.1", "2001:db8::1"},
	"gateway, link-local":  {"169.254.1.1", "fe80::1"},
	"gateway, anycast":     {"", "2001:db8:e::"},
	"gateway, AnyIP":       {"203.0.113.129", "2001:db8:a::5"},
	"gateway, other table": {"203.0.113.161", "2001:db8:b::5"},
	"loopback":             {"127.0.0.1", "::1"},
	"behind":               {"198.51.100.5", "2001:db8:1::5"},
	"client":               {"192.0.2.2", "2001:db8::2"},
	"link-local":           {"169.254.1.7", "fe80::7"},
	"client's link-local":  {"169.254.1.10", "fe80::a"},
	"multicast":            {"224.0.0.1", "ff02::1"},
	"broadcast":            {"203.0.113.255", ""},
	"all ones":             {"255.255.255.255", ""},
	"none":                 {"0.0.0.0", "::"},
	"mapped":               {"", "::ffff:203.0.113.1"},
	"mapped client":        {"", "::ffff:192.0.2.2"},
}

// addressOf returns the address with that name in a family; invalid: there is none.
func addressOf(name string, six bool) netip.Addr {
	a, err := netip.ParseAddr(lawAddrs[name][familyIndex(six)])
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// outlet is an interface of the stranger's, through which its packets go to the gateway.
type outlet struct {
	fd     int
	header []byte // Ethernet
	// wrap puts an IP packet into a tunnel; nil: there is no tunnel.
	wrap func(ip []byte) [][]byte
	flat bool // no Ethernet: the IP packet is written as it is
}

// world is a topology with a guard: one way to get to the guarded ports.
type world struct {
	*site
	way     *way
	evil    *lab.Host
	inner   *lab.Host
	servers []*server // behind guarded ports
	beyond  []*server // on the machine behind
	wires   []*wire
	see     *sight
	outlets []*outlet
	marker  int
	dev     string          // the gateway's interface towards the stranger
	inside  string          // its interface towards the machine behind
	skipped string          // why there is no such world here
	lacks   map[string]bool // what cannot be seen here, and why
}

// newWorld builds a topology. It has no guard yet.
func newWorld(t *testing.T, y *way, k kind) *world {
	t.Helper()
	client, gw := lab.Pair(t)
	w := &world{
		site: &site{T: t, client: client, gw: gw, kind: k},
		way:  y, see: newSight(), lacks: make(map[string]bool), dev: "ve", inside: "in",
	}
	more := lab.New(t, "evil", "inner")
	w.evil, w.inner = more[0], more[1]
	w.must(lab.Link(w.evil, "ev", gw, "ve"))
	w.must(lab.Link(w.evil, "et", gw, "vt"))
	w.must(lab.Link(gw, "in", w.inner, "eth0"))
	w.mute()
	if y.first != nil {
		if err := y.first(w); err != nil {
			w.skipped = err.Error()
			return w
		}
	}
	w.addresses()
	if y.build != nil {
		y.build(w)
	}
	if !y.bare {
		// As on most hosts, connection tracking is enabled even without the guard.
		w.rules("table inet host { chain in { type filter hook input priority 0; ct state established accept\n}\n}")
	}
	w.servers, w.beyond = w.serveLaw(gw), w.serveLaw(w.inner)
	w.wires = append(w.wires, w.tap(w.evil, "ev"), w.tap(w.evil, "et"), w.tap(gw, "lo"))
	w.openMarker()
	w.openServers()
	if len(w.outlets) == 0 {
		w.outlets = append(w.outlets, w.outlet(w.evil, "ev", w.dev))
	}
	return w
}

// mute keeps the stranger's own kernel from answering.
func (w *world) mute() {
	w.Helper()
	for _, dev := range []string{"ev", "et"} {
		w.must(w.evil.Sysctl("net.ipv6.conf."+dev+".disable_ipv6", "1"))
	}
}

func (w *world) addresses() {
	w.Helper()
	add := func(h *lab.Host, dev string, prefixes ...string) {
		w.Helper()
		for _, p := range prefixes {
			w.must(h.AddAddr(dev, p))
		}
	}
	add(w.gw, w.dev, "203.0.113.1/24", "2001:db8:e::1/64", "169.254.1.1/16", "fe80::1/64")
	add(w.gw, "vt", "fe80::1/64")
	add(w.gw, "vs", "fe80::1/64")
	add(w.gw, w.inside, "198.51.100.1/24", "2001:db8:1::1/64")
	add(w.client, "vc", "fe80::a/64")
	add(w.inner, "eth0", "198.51.100.5/24", "2001:db8:1::5/64")
	w.must(w.inner.Route("default", "198.51.100.1"))
	w.must(w.inner.Route("default", "2001:db8:1::1"))
	for _, route := range []string{"198.51.100.0/24", "203.0.113.0/24"} {
		w.must(w.client.Route(route, "192.0.2.1"))
	}
	for _, route := range []string{"2001:db8:1::/64", "2001:db8:e::/64"} {
		w.must(w.client.Route(route, "2001:db8::1"))
	}
	w.neighbours("vs", w.client, "vc", "client", "client's link-local", "link-local")
	if w.inside != w.dev {
		w.neighbours(w.inside, w.inner, "eth0", "behind", "client's link-local", "link-local")
	}
	if !w.way.flat {
		w.neighbours(w.dev, w.evil, "ev", "stranger", "ex-client", "link-local", "client's link-local")
	}
}

// clientAddr returns the address of a client, which is at vs, as in a grant.
func (w *world) clientAddr(name string, six bool) netip.Addr {
	w.Helper()
	a := addressOf(name, six)
	if !six || !a.IsLinkLocalUnicast() {
		return a
	}
	index, _, err := w.gw.Interface("vs")
	w.must(err)
	return a.WithZone(strconv.Itoa(index))
}

// neighbours adds the neighbours behind one of the gateway's interfaces, so that it sends no requests for them.
// Strangers do not answer those, and a packet that waits for an answer is still unfinished when flush returns:
// seconds later the gateway makes an ICMP error about it, and sends that to itself if the packet claimed to come from
// it.
func (w *world) neighbours(dev string, h *lab.Host, nic string, names ...string) {
	w.Helper()
	for _, name := range names {
		for _, six := range []bool{false, true} {
			if a := addressOf(name, six); a.IsValid() {
				w.neighbour(dev, h, nic, a)
			}
		}
	}
}

func (w *world) neighbour(dev string, h *lab.Host, nic string, all ...netip.Addr) {
	w.Helper()
	_, mac, err := h.Interface(nic)
	w.must(err)
	w.must(w.onLink(dev, func(l netlink.Link) error {
		for _, a := range all {
			n := &netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
			if err := netlink.NeighSet(n); err != nil {
				return fmt.Errorf("neighbour %v: %w", a, err)
			}
		}
		return nil
	}))
}

// onLink does something inside the gateway to one of its interfaces.
func (w *world) onLink(dev string, do func(netlink.Link) error) error {
	return w.gw.Do(func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return do(l)
	})
}

// outlet opens an interface of a stranger's for frames to one of the gateway's.
func (w *world) outlet(h *lab.Host, evil, gateway string) *outlet {
	w.Helper()
	_, to, err := w.gw.Interface(gateway)
	w.must(err)
	index, from, err := h.Interface(evil)
	w.must(err)
	o := &outlet{header: append(append(append([]byte{}, to...), from...), 8, 0)}
	w.must(h.Do(func() (err error) {
		if o.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(o.fd, &unix.SockaddrLinklayer{Ifindex: index})
	}))
	w.Cleanup(func() { unix.Close(o.fd) })
	return o
}

// frames returns the frames on the cable for an IP packet.
func (o *outlet) frames(ip []byte, p pack) [][]byte {
	if o.flat {
		return [][]byte{ip}
	}
	header := append([]byte{}, o.header[:12]...)
	switch p {
	case packPriority:
		header = append(header, 0x81, 0, 0, 0)
	case packVLAN:
		header = append(header, 0x81, 0, 0, 7)
	}
	packets := [][]byte{ip}
	if o.wrap != nil {
		packets = o.wrap(ip)
	}
	for i, ip := range packets {
		kind := []byte{8, 0}
		if ip[0]>>4 == 6 {
			kind = []byte{0x86, 0xdd}
		}
		packets[i] = append(append(append([]byte{}, header...), kind...), ip...)
	}
	return packets
}

func (o *outlet) send(p *packet) error {
	for _, ip := range p.bytes() {
		for _, frame := range o.frames(ip, p.pack) {
			if _, err := unix.Write(o.fd, frame); err != nil && err != unix.ENOBUFS && err != unix.EINVAL {
				return fmt.Errorf("sending a frame: %w", err)
			}
		}
	}
	return nil
}

// openMarker opens the socket that shows when everything that was sent has been processed.
func (w *world) openMarker() {
	w.Helper()
	w.must(w.gw.Do(func() (err error) {
		if w.marker, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(w.marker, &unix.SockaddrInet4{Port: markerPort})
	}))
	w.Cleanup(func() { unix.Close(w.marker) })
}

// rounds is how often hosts may forward a packet because of one that the stranger sent: to the gateway, to a machine
// behind, back, and back to the stranger.
const rounds = 4

// flush waits until the gateway, and the hosts that it forwards to, have processed everything that was sent. A host
// processes packets in the order of arrival, so a datagram sent after them marks their end; each round gets what the
// last one queued.
func (w *world) flush() {
	w.Helper()
	for range rounds {
		w.mark(w.outlets[0])
	}
	for _, s := range w.servers {
		s.look(w.see)
	}
	beyond := w.see
	if !w.way.guardsBehind() {
		beyond = newSight()
	}
	for _, s := range w.beyond {
		s.look(beyond)
	}
	for _, t := range w.wires {
		w.must(t.look(w.see))
	}
}

func (w *world) mark(o *outlet) {
	w.Helper()
	p := &packet{shape: shapeUDP, from: netip.AddrPortFrom(addressOf("stranger", false), 9),
		to: netip.AddrPortFrom(addressOf("gateway", false), markerPort)}
	b := make([]byte, 100)
	deadline := time.Now().Add(lab.Patience)
	w.must(o.send(p))
	for again := time.Now().Add(time.Second); ; {
		if _, _, err := unix.Recvfrom(w.marker, b, 0); err == nil {
			return
		}
		if now := time.Now(); now.After(deadline) {
			w.Fatal("a datagram to an open port of the gateway did not arrive")
		} else if now.After(again) {
			w.must(o.send(p))
			again = now.Add(time.Second)
		}
		fds := []unix.PollFd{{Fd: int32(w.marker), Events: unix.POLLIN}}
		unix.Poll(fds, 100)
	}
}

// settled fails if the gateway waits for a neighbour that did not answer: see neighbours.
func (w *world) settled() {
	w.Helper()
	w.must(w.gw.Do(func() error {
		all, err := netlink.NeighList(0, netlink.FAMILY_ALL)
		for _, n := range all {
			if n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) != 0 {
				w.Errorf("a packet waits for a neighbour of the gateway, so its effects are seen too late: %v at interface %d",
					n.IP, n.LinkIndex)
			}
		}
		return err
	}))
}

func (w *world) allServers() []*server { return slices.Concat(w.servers, w.beyond) }

// pin assigns processors to tests.
var pin atomic.Int32

// pinned runs do on one processor: packets that one processor puts on a cable arrive in that order.
func pinned(do func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var was, one unix.CPUSet
	if unix.SchedGetaffinity(0, &was) == nil && was.Count() > 0 {
		turn := int(pin.Add(1)) % was.Count()
		for i := range 1024 {
			if was.IsSet(i) {
				if turn == 0 {
					one.Set(i)
				}
				turn--
			}
		}
		if unix.SchedSetaffinity(0, &one) == nil {
			defer unix.SchedSetaffinity(0, &was)
		}
	}
	do()
}

// guardConfig returns the guard of a world.
func (w *world) guardConfig(closed Closed) Config {
	w.Helper()
	c := Config{Knock: []KnockPort{{Port: 62201}}, Closed: closed, State: w.TempDir(),
		knobs: knobs{slots: 256, plain: true}}
	for _, s := range lawServices {
		for _, port := range []uint16{s.port, s.front} {
			p := ports(fmt.Sprintf("%v/%d", s.proto, port))
			c.Guarded = append(c.Guarded, p)
			if s.cut {
				c.Cut = append(c.Cut, p)
			}
		}
	}
	// Ports from which the host itself sends requests.
	c.Guarded = append(c.Guarded, ports("udp/123"), ports("tcp/2200"))
	for _, name := range w.way.listed {
		c.Targets = append(c.Targets, Target{Addresses: []netip.Addr{addressOf(name, false), addressOf(name, true)},
			Ports: c.Guarded})
	}
	if slices.Contains(w.way.listed, "behind") { // ports that lead to the same machine change nothing
		for i, s := range lawServices {
			port := uint16(2300 + i)
			if w.way.forwards {
				port = s.front
			}
			from := service.Ports{Proto: s.proto, Low: port, High: port}
			c.Guarded = append(c.Guarded, from)
			c.Forwards = append(c.Forwards, Forward{Ports: []service.Ports{from}, Masquerade: w.way.masks, To: []netip.AddrPort{
				netip.AddrPortFrom(addressOf("behind", false), s.port), netip.AddrPortFrom(addressOf("behind", true), s.port)}})
		}
	} else if w.way.forwards {
		for _, s := range lawServices {
			from := service.Ports{Proto: s.proto, Low: s.front, High: s.front}
			c.Guarded = append(c.Guarded, from)
			c.Forwards = append(c.Forwards, Forward{Ports: []service.Ports{from}, Port: s.port})
		}
	}
	if w.kind.programs != "" {
		c.Backend, c.programs = BackendIptables, links(w.T, w.kind.programs)
		c.lock = filepath.Join(c.programs, "lock")
	}
	return c
}

// restart removes a guard, with everything that was tracked, and opens another one, which is not loaded.
func (w *world) restart(closed Closed) {
	w.Helper()
	if w.Firewall != nil {
		w.must(w.Firewall.Close())
		w.Firewall = nil
		w.must(w.gw.Do(func() error { return Teardown(w.config.State) }))
		w.away()
	}
	w.forget()
	w.config = w.guardConfig(closed)
	w.must(w.gw.Do(func() (err error) {
		w.Firewall, err = New(w.config, slog.New(slog.DiscardHandler))
		return err
	}))
	fw := w.Firewall
	w.Cleanup(func() { fw.Close() })
}

// away is another tool that removes the guard.
func (w *world) away() {
	w.Helper()
	if w.kind.programs != "" {
		for _, program := range []string{"iptables", "ip6tables"} {
			for _, table := range []string{"raw", "mangle"} {
				w.program(program, "-w", lockWait, "-t", table, "-F")
			}
		}
		return
	}
	w.must(w.gw.Do(func() error {
		c, err := nft.New()
		if err != nil {
			return err
		}
		c.DelTable(&nft.Table{Name: "spa", Family: nft.TableFamilyINet})
		if err := c.Flush(); !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	}))
}

// forget empties connection tracking.
func (w *world) forget() {
	w.Helper()
	w.must(w.gw.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }))
}

// tool runs a program inside the gateway, as its administrator does.
func (w *world) tool(stdin string, name string, args ...string) {
	w.Helper()
	cmd := exec.Command(lab.NeedProgram(w.T, name, "apt-get install nftables iproute2"), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, code := lab.Run(w.T, w.gw, cmd)
	if code != 0 {
		w.Fatalf("%s %s: %s", name, strings.Join(args, " "), out)
	}
}

// rules makes the administrator load rules of nft.
func (w *world) rules(text string) { w.Helper(); w.tool(text, "nft", "-f", "-") }

func (w *world) sysctls(all ...string) {
	w.Helper()
	for _, s := range all {
		name, value, _ := strings.Cut(s, "=")
		w.must(w.gw.Sysctl(name, value))
	}
}
