package firewall

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// losses are what becomes of the guard's state, or of the kernel's.
var losses = map[string]func(*lossy){
	"flush":   func(l *lossy) { l.flushRuleset(); l.leads(); l.load(0) },
	"restart": func(l *lossy) { l.open(); l.load(0) },
	"reload": func(l *lossy) {
		l.must(l.gw.Do(func() error { return l.Reconfigure(l.Context(), l.config, time.Now()) }))
	},
	"forget": func(l *lossy) { l.forgetFlows() },
}

// TestLostState: whatever is lost, and in whatever order, a session where sessions end with their grants is over with
// its grant, and nobody is let in without one; a session continues that has a grant, or had one where sessions outlive
// it, unless connection tracking has forgotten it.
func TestLostState(t *testing.T) {
	lab.NeedNamespaces(t)
	for _, k := range kinds()[:1] {
		for _, f := range bothFamilies {
			for _, cut := range []bool{true, false} {
				name := fmt.Sprintf("%s/%s/%s", k.name, f.name, map[bool]string{true: "cut", false: "keep"}[cut])
				for _, order := range lossOrders() {
					t.Run(name+"/"+strings.Join(order, ","), func(t *testing.T) {
						t.Parallel()
						newLossy(t, k, f, cut).judge(order)
					})
				}
			}
		}
	}
}

// lossOrders are all orders of the grant's end and two losses.
func lossOrders() (all [][]string) {
	for _, first := range []string{"flush", "restart", "reload", "forget"} {
		for _, second := range []string{"flush", "restart", "reload", "forget"} {
			for at := range 3 {
				all = append(all, slices.Insert([]string{first, second}, at, "end"))
			}
		}
	}
	return all
}

// lossy is a site with sessions of alice, whose grants last, and of the stranger, whose grants end.
type lossy struct {
	*site
	sides
	cut   bool
	inner netip.Addr

	mu    sync.Mutex
	heard map[string]bool // what has arrived
	says  []*said
}

// said is one direction of a session.
type said struct {
	name      string
	ends      bool // its grant ends
	led       bool // another tool leads it
	forwarded bool
	tcp       bool
	send      func(string)
}

func newLossy(t *testing.T, k kind, f sides, cut bool) *lossy {
	l := &lossy{sides: f, cut: cut, inner: netip.MustParseAddr(innerAddr[f.name]), heard: make(map[string]bool)}
	l.site = k.newSite(t, func(c *Config) {
		c.Guarded = rangesOf("tcp/2200 udp/2200 tcp/2224 udp/2224")
		c.Targets = []Target{{Addresses: []netip.Addr{l.inner}, Ports: rangesOf("tcp/2200 udp/2200")}}
		c.Forwards = []Forward{{Ports: rangesOf("tcp/2224 udp/2224"),
			To: []netip.AddrPort{netip.AddrPortFrom(l.inner, 2300)}}}
		if cut {
			c.Cut = c.Guarded
		}
	})
	behind := l.behind()
	l.leads()
	l.open()
	l.load(0)
	l.grants()
	for _, way := range []struct {
		name, to string
		at       *lab.Host
		port     string
	}{
		{"here", net.JoinHostPort(f.gateway, "2200"), l.gw, "2200"},
		{"led here", net.JoinHostPort(f.gateway, "2222"), l.gw, "2200"},
		{"machine", net.JoinHostPort(l.inner.String(), "2200"), behind, "2200"},
		{"led to machine", net.JoinHostPort(f.gateway, "2223"), behind, "2200"},
		{"forwarded", net.JoinHostPort(f.gateway, "2224"), behind, "2300"},
	} {
		l.begin(way.name, way.to, way.at, way.port)
	}
	return l
}

// leads makes another tool lead two ports to guarded ones.
func (l *lossy) leads() {
	l.nft(fmt.Sprintf("table inet leads { chain c { type nat hook prerouting priority -100; meta l4proto { tcp, udp } "+
		"%[1]s daddr %[2]s th dport 2222 redirect to :2200; meta l4proto { tcp, udp } %[1]s daddr %[2]s th dport 2223 "+
		"dnat %[1]s to %[3]s; }; }", nftFamily[l.name], l.gateway, netip.AddrPortFrom(l.inner, 2200)))
}

func (l *lossy) grants() {
	var gs []Grant
	for client, from := range map[string]string{"alice": l.alice, "bob": l.stranger} {
		here, there := sshGrant(client, from, long), sshGrant(client, from, long)
		here.Ports = l.config.Guarded
		there.Service, there.Ports, there.To = "there", rangesOf("tcp/2200 udp/2200"), []netip.Addr{l.inner}
		gs = append(gs, here, there)
	}
	l.must(l.Grant(l.Context(), gs, time.Now()))
}

// begin begins sessions of both clients by a way, with datagrams and with TCP.
func (l *lossy) begin(way, to string, at *lab.Host, port string) {
	l.Helper()
	server := lab.Value(l.server(at, port))(l)
	listener := l.listener(at, port)
	for _, from := range []string{l.alice, l.stranger} {
		one := said{ends: from == l.stranger, led: strings.HasPrefix(way, "led"), forwarded: way == "forwarded"}
		add := func(name string, tcp bool, send func(string)) {
			s := one
			s.name, s.tcp, s.send = fmt.Sprintf("%s %s by %s", from, name, way), tcp, send
			l.says = append(l.says, &s)
		}
		c := l.udp(l.client, net.JoinHostPort(from, "0"))
		go l.hear(c)
		add("asks", false, func(text string) { c.WriteToUDPAddrPort([]byte(text), netip.MustParseAddrPort(to)) })
		l.says[len(l.says)-1].send("hello " + way + from + "\n")
		l.awaits("hello " + way + from)
		add("is told", false, func(text string) { server.WriteTo([]byte(text), c.LocalAddr()) })
		l.says[len(l.says)-1].send("welcome " + way + from + "\n")
		l.awaits("welcome " + way + from)

		mine, err := lab.Dial(l.client, from, to, lab.Patience)
		l.must(err)
		l.Cleanup(func() { mine.Close() })
		theirs := lab.Value(listener.Accept())(l)
		l.Cleanup(func() { theirs.Close() })
		go l.hearTCP(mine)
		go l.hearTCP(theirs)
		add("writes", true, func(text string) { mine.Write([]byte(text)) })
		add("is written to", true, func(text string) { theirs.Write([]byte(text)) })
	}
}

var lossSockets sync.Map // of a test, by host and port

func (l *lossy) server(at *lab.Host, port string) (*net.UDPConn, error) {
	key := fmt.Sprint(l.Name(), "udp", at, port)
	if c, ok := lossSockets.Load(key); ok {
		return c.(*net.UDPConn), nil
	}
	c := l.udp(at, "[::]:"+port)
	lossSockets.Store(key, c)
	go l.hear(c)
	return c, nil
}

func (l *lossy) listener(at *lab.Host, port string) net.Listener {
	key := fmt.Sprint(l.Name(), "tcp", at, port)
	if c, ok := lossSockets.Load(key); ok {
		return c.(net.Listener)
	}
	c := l.listens(at, ":"+port)
	lossSockets.Store(key, c)
	return c
}

func (l *lossy) note(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard[text] = true
}

func (l *lossy) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard[text]
}

func (l *lossy) awaits(text string) {
	l.Helper()
	lab.Eventually(l, text, func() bool { return l.has(text) })
}

func (l *lossy) hear(c *net.UDPConn) {
	b := make([]byte, 2048)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil && n == 0 && strings.Contains(err.Error(), "closed") {
			return
		}
		l.note(string(bytes.TrimSpace(b[:n])))
	}
}

func (l *lossy) hearTCP(c net.Conn) {
	for s := bufio.NewScanner(c); s.Scan(); {
		l.note(s.Text())
	}
}

// judge lets it happen, in this order, and applies the law.
func (l *lossy) judge(order []string) {
	for _, what := range order {
		if what == "end" {
			l.revoke(Match{Client: "bob"})
			continue
		}
		losses[what](l)
	}
	for round := range 2 {
		text := func(s *said) string { return fmt.Sprintf("round %d: %s", round, s.name) }
		missing := func(s *said) bool { return l.lives(order, s) && !l.has(text(s)) }
		for until := time.Now().Add(lab.Patience); ; {
			for _, s := range l.says {
				if !l.has(text(s)) {
					s.send(text(s) + "\n")
				}
			}
			time.Sleep(silence)
			if !slices.ContainsFunc(l.says, missing) || time.Now().After(until) {
				break
			}
		}
		for _, s := range l.says {
			if missing(s) {
				l.Errorf("lost: %s", text(s))
			}
			if l.has(text(s)) && l.dies(order, s) {
				l.Errorf("heard without a grant: %s", text(s))
			}
		}
	}
}

// lives reports whether a session must continue.
func (l *lossy) lives(order []string, s *said) bool {
	if slices.Contains(order, "forget") { // what DNAT has led on is led no more if its server speaks first
		return !s.ends && !s.led && !s.forwarded
	}
	if s.forwarded && slices.Contains(order, "flush") { // see "Limits" in the documentation
		return false
	}
	return !s.ends || !l.cut
}

// dies reports whether a session must be over.
func (l *lossy) dies(order []string, s *said) bool {
	end, forget, flush := slices.Index(order, "end"), slices.Index(order, "forget"), slices.Index(order, "flush")
	if !s.tcp && forget >= 0 && end < lastIndex(order, "flush") && flush >= 0 && l.kind.programs == "" {
		return false // see "Limits"
	}
	return s.ends && (l.cut || lastIndex(order, "forget") > end)
}

func lastIndex(all []string, one string) int {
	for i := len(all) - 1; i >= 0; i-- {
		if all[i] == one {
			return i
		}
	}
	return -1
}
