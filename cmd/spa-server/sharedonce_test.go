package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// TestSharedOnce sends each packet to three gateways of one address at the same moment. The law: exactly one of them
// grants, none is lost, no packet is answered twice, and all three let its client in. SALLYPORT_CASES=10000 sends so
// many commands, rather than 1,000.
func TestSharedOnce(t *testing.T) {
	nft := lab.NeedProgram(t, "nft", "apt-get install nftables")
	total := 1000
	if n, err := strconv.Atoi(os.Getenv("SALLYPORT_CASES")); err == nil && n > 1 {
		total = n
	}
	c := newCopies(newTogether(t, 3, newEtcd(t, 1).connect), total)
	c.send()
	once := make(map[string]int) // by source address, of which each command has one
	for i := range total {
		once[source(i).String()] = 1
	}
	granted := make(map[string]int)
	for _, o := range c.members {
		lab.Eventually(t, o.name+" to know all grants", func() bool {
			in, out := o.knows()
			return len(in)+len(out) >= total
		})
		in, out := o.knows()
		for from, n := range in {
			granted[from] += n
			out[from]++
		}
		if !maps.Equal(out, once) {
			t.Errorf("%s records %d addresses, and some not once: %v", o.name, len(out), unequal(out, once))
		}
		if kernel := o.letsIn(nft); !maps.Equal(kernel, once) {
			t.Errorf("the kernel of %s lets in %d addresses, want the %d that knocked", o.name, len(kernel), total)
		}
	}
	if !maps.Equal(granted, once) {
		t.Errorf("granted to %d addresses, and to some not once: %v", len(granted), unequal(granted, once))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	packets := 0
	for i, sent := range c.sent {
		packets += len(sent)
		for _, p := range sent {
			if p.answers > 1 {
				t.Errorf("a packet of %v is answered %d times", source(i), p.answers)
			}
		}
	}
	t.Logf("%d commands in %d packets, each sent to %d gateways", total, packets, len(c.members))
}

// knows returns how often addresses were granted access here, and which have it by another gateway's grant.
func (o *office) knows() (here, elsewhere map[string]int) {
	o.t.Helper()
	here, elsewhere = make(map[string]int), make(map[string]int)
	for _, event := range o.auditLines() {
		switch {
		case event["verdict"] == "granted":
			here[netip.MustParseAddrPort(event["from"].(string)).Addr().String()]++
		case event["act"] == "install":
			elsewhere[event["source"].(string)] = 1 // a retry may install it again
		case event["verdict"] != nil && event["verdict"] != "repeated":
			o.t.Errorf("%s records %v", o.name, event)
		}
	}
	return here, elsewhere
}

// unequal returns what is not as wanted.
func unequal(got, want map[string]int) map[string]int {
	return maps.Collect(func(yield func(string, int) bool) {
		for key, n := range got {
			if n != want[key] && !yield(key, n) {
				return
			}
		}
	})
}

// ofEach is how many commands a client gives: it may have 64 grants at a time.
const ofEach = 50

// copies sends packets of many clients to all gateways of an address.
type copies struct {
	*together
	senders []spa.Sender
	sockets []*net.UDPConn  // one for each member, in its client's host
	done    []chan struct{} // by command: closed when a packet of it is answered
	mu      sync.Mutex
	sent    [][]*sealed // packets, by command
}

// sealed is a packet that was sent.
type sealed struct {
	packet  []byte
	answers int
}

// source returns the address from which the packets of a command come.
func source(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8),
		15: byte(i)})
}

// command returns the number of the command whose packets come from an address.
func command(a netip.Addr) int {
	b := a.As16()
	return int(b[12])<<24 | int(b[13])<<16 | int(b[14])<<8 | int(b[15])
}

func newCopies(s *together, total int) *copies {
	s.t.Helper()
	c := &copies{together: s, done: make([]chan struct{}, total), sent: make([][]*sealed, total)}
	var known []*keys.Client
	for i := range (total + ofEach - 1) / ofEach {
		known = append(known, fleetClient(fmt.Sprintf("c%d", i), "ssh"))
		c.senders = append(c.senders, s.members[0].sender(known[i]))
	}
	for i := range c.done {
		c.done[i] = make(chan struct{})
	}
	for _, o := range s.members {
		o.publish(2, time.Now(), known...)
		o.inForce(2)
		lab.Must(s.t, o.client.Local("2001:db8:1::/64"))
		lab.Must(s.t, o.host.Route("2001:db8:1::/64", "2001:db8::2"))
		var conn *net.UDPConn
		lab.Must(s.t, o.client.Do(func() (err error) {
			conn, err = net.ListenUDP("udp6", nil)
			return err
		}))
		s.t.Cleanup(func() { conn.Close() })
		raw := lab.Value(conn.SyscallConn())(s.t)
		lab.Must(s.t, raw.Control(func(fd uintptr) {
			for _, option := range []int{unix.IPV6_RECVPKTINFO, unix.IPV6_FREEBIND} {
				lab.Must(s.t, unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, option, 1))
			}
		}))
		c.sockets = append(c.sockets, conn)
	}
	return c
}

// send gives the commands. Each client waits for an answer before its next.
func (c *copies) send() {
	for _, conn := range c.sockets {
		go c.receive(conn)
	}
	var clients sync.WaitGroup
	turn := make(chan struct{}, 20) // as many send at once
	for k, by := range c.senders {
		turn <- struct{}{}
		clients.Go(func() {
			defer func() { <-turn }()
			for i := k * ofEach; i < min((k+1)*ofEach, len(c.done)) && !c.t.Failed(); i++ {
				c.knock(i, by)
			}
		})
	}
	clients.Wait()
	if c.t.Failed() {
		for _, o := range c.members {
			c.t.Logf("%s: %v\n%s", o.name, o.status().Fleet.Shared, o.server.log())
		}
		c.t.FailNow()
	}
}

// knock sends a packet to each gateway at once, and another one like spa-client if there is no answer: gateways are
// silent if the store takes too long.
func (c *copies) knock(i int, by spa.Sender) {
	r := request()
	r.For = 10 * time.Minute
	for until := r.Time.Add(lab.Patience); r.Time.Before(until); r.Time = time.Now() {
		packet, err := spa.Seal(r, by)
		if err != nil {
			c.t.Error(err)
			return
		}
		c.mu.Lock()
		c.sent[i] = append(c.sent[i], &sealed{packet: packet})
		c.mu.Unlock()
		from := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: source(i).As16()})
		for turn := range c.sockets {
			conn := c.sockets[(i+turn)%len(c.sockets)]
			if _, _, err := conn.WriteMsgUDPAddrPort(packet, from, knockAddr("2001:db8::2")); err != nil {
				c.t.Error(err)
				return
			}
		}
		select {
		case <-c.done[i]:
			return
		case <-time.After(3 * time.Second):
		}
	}
	c.t.Errorf("command %d of %d has no answer", i, len(c.done))
}

// receive counts the answers at a socket until it is closed. Where an answer arrives tells which packet it is for.
func (c *copies) receive(conn *net.UDPConn) {
	var buf [2048]byte
	var control [128]byte
	for {
		n, m, _, _, err := conn.ReadMsgUDPAddrPort(buf[:], control[:])
		if err != nil {
			return
		}
		to, err := unix.ParseSocketControlMessage(control[:m])
		if err != nil || len(to) != 1 {
			c.t.Errorf("an answer without an address: %v", err)
			continue
		}
		c.answer(netip.AddrFrom16([16]byte(to[0].Data[:16])), buf[:n])
	}
}

func (c *copies) answer(to netip.Addr, text []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := command(to)
	for _, p := range c.sent[i] {
		receipt, err := spa.OpenReceipt(text, p.packet, c.senders[i/ofEach])
		if err != nil {
			continue
		}
		if receipt.Status != spa.Granted {
			c.t.Errorf("the answer to %v: %v", to, receipt.Status)
		}
		p.answers++
		select {
		case <-c.done[i]:
		default:
			close(c.done[i])
		}
		return
	}
	c.t.Errorf("what came to %v is not the answer to a packet from there", to)
}

// letsIn returns the addresses in the kernel's set of grants.
func (o *office) letsIn(nft string) map[string]int {
	o.t.Helper()
	out, code := lab.Run(o.t, o.host, exec.Command(nft, "-j", "list", "set", "inet", "spa", "grants6"))
	var listed struct {
		Nftables []struct {
			Set struct {
				Elem []struct {
					Elem struct{ Val struct{ Concat []any } }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &listed); code != 0 || err != nil {
		o.t.Fatalf("nft list set: %v\n%.500s", err, out)
	}
	in := make(map[string]int)
	for _, item := range listed.Nftables {
		for _, e := range item.Set.Elem {
			if key := e.Elem.Val.Concat; !slices.Equal(key[1:], []any{"tcp", 22.0}) {
				o.t.Errorf("a grant for %v", key)
			} else {
				in[key[0].(string)]++
			}
		}
	}
	return in
}
