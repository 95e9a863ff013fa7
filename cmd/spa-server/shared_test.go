package main

import (
	"crypto/ed25519"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/share/standin"
	"sallyport/spa/lab"
)

// together are gateways that share an address, each on a link of its own, with a host of the client's address.
type together struct {
	t       testing.TB
	connect func(t testing.TB, o *office) // runs a member's agent
	members []*office
	ann     *keys.Client
	by      spa.Sender
}

// newTogether starts n of them.
func newTogether(t testing.TB, n int, connect func(testing.TB, *office)) *together {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	seal, gate := fleet.Seal{Fleet: keys.NewFleetID(), Key: private}, keys.NewGateKey()
	s := &together{t: t, connect: connect, ann: fleetClient("ann", "ssh")}
	for i := range n {
		g := newGateway(t)
		name := fmt.Sprintf("lb%d", i+1)
		o := g.joinOffice(seal, gate, "fleet.gateway="+name)
		o.name, o.site = name, "www"
		g.serve(":22")
		o.publish(1, time.Now(), s.ann)
		s.members = append(s.members, o)
		s.start(o)
	}
	s.by = s.members[0].sender(s.ann)
	s.ready()
	return s
}

// start starts a member and its agent.
func (s *together) start(o *office) {
	s.t.Helper()
	o.start()
	o.inForce(1)
	s.connect(s.t, o)
}

// standIn returns a store in memory, and what runs the agent of a member for it.
func standIn() (*standin.Store, func(testing.TB, *office)) {
	store := standin.New()
	return store, func(t testing.TB, o *office) {
		t.Helper()
		agent := lab.Value(store.Connect(filepath.Join(o.dir, config.ShareFile)))(t)
		t.Cleanup(func() { agent.Close() })
	}
}

func (s *together) ready() {
	s.t.Helper()
	for _, o := range s.members {
		lab.Eventually(s.t, o.name+" to take part", func() bool {
			h := o.status().Fleet.Shared
			return h.Joined && len(h.Members) == len(s.members)
		})
	}
}

// answers sends one packet to members at once, and returns their answers.
func (s *together) answers(packet []byte, within time.Duration, to ...*office) []spa.Receipt {
	s.t.Helper()
	var answers []spa.Receipt
	until := time.Now().Add(within)
	for i, conn := range sockets(to, packet) {
		if r := to[i].receipt(conn, packet, s.by, max(time.Until(until), silence)); r != nil {
			answers = append(answers, *r)
		}
	}
	return answers
}

// wantAccess checks at which members the client reaches ssh.
func (s *together) wantAccess(when string, to ...*office) {
	s.t.Helper()
	for _, o := range s.members {
		if slices.Contains(to, o) {
			o.wantOpen("192.0.2.2", "192.0.2.1:22", when+", "+o.name)
		} else {
			o.wantDark("192.0.2.2", "192.0.2.1:22", when+", "+o.name)
		}
	}
}

// TestSharedAddress: gateways with one address grant a packet that reaches all of them once, and let its client in at
// each; a retry at another is answered the same; a close at one ends it at all before it is answered; so it is after
// kill -9.
func TestSharedAddress(t *testing.T) {
	store, connect := standIn()
	s := newTogether(t, 3, connect)
	s.wantAccess("before")
	r := request()
	r.For = 5 * time.Minute
	first := s.answers(s.members[0].gateway.seal(r, s.by), 2*time.Second, s.members...)
	if len(first) != 1 || first[0].Status != spa.Granted {
		t.Fatalf("one packet at all gateways: got %+v", first)
	}
	for _, o := range s.members {
		lab.Eventually(t, o.name+" to have the grant", func() bool { return len(o.grants()) == 1 })
	}
	s.wantAccess("granted", s.members...)
	for _, o := range s.members {
		r.Time = time.Now()
		if again := o.wantReceipt("192.0.2.2", o.gateway.seal(r, s.by), s.by, spa.Granted); again.Services[0].For >
			first[0].Services[0].For {
			t.Errorf("a retry at %s lasts %v, and the first answer was %v", o.name, again.Services[0].For,
				first[0].Services[0].For)
		}
	}
	granted := 0
	for _, o := range s.members {
		granted += len(slices.DeleteFunc(o.audited("ann"), func(verdict string) bool { return verdict != "granted" }))
	}
	if granted != 1 {
		t.Errorf("it is recorded as granted %d times", granted)
	}

	killed := s.members[1]
	killed.server.stop(syscall.SIGKILL)
	closing := request()
	closing.Type = spa.TypeClose
	packet := killed.gateway.seal(closing, s.by)
	if got := s.answers(packet, silence, s.members[0]); len(got) != 0 {
		t.Errorf("a close is answered while %s may still let the client in: %+v", killed.name, got)
	}
	store.End(killed.name) // as its lease does
	lab.Eventually(t, "a retry to be answered", func() bool {
		closing.Time = time.Now()
		got := s.answers(killed.gateway.seal(closing, s.by), silence, s.members[2])
		return len(got) == 1 && got[0].Status == spa.Closed
	})
	if n := len(s.members[0].grants()) + len(s.members[2].grants()); n != 0 {
		t.Errorf("after the answer to a close there are %d grants", n)
	}
	s.start(killed)
	s.ready()
	for _, o := range s.members {
		lab.Eventually(t, o.name+" to have no grant", func() bool { return len(o.grants()) == 0 })
	}
	s.wantAccess("closed")
	old := request()
	old.Time = closing.Time.Add(-5 * time.Second)
	killed.wantReceipt("192.0.2.2", killed.gateway.seal(old, s.by), s.by, spa.ReasonSuperseded)
}

// TestSharedRevoke: spa-server revoke ends grants at all gateways, and fails if one does not confirm it.
func TestSharedRevoke(t *testing.T) {
	store, connect := standIn()
	s := newTogether(t, 2, connect)
	one, other := s.members[0], s.members[1]
	one.wantReceipt("192.0.2.2", one.gateway.seal(request(), s.by), s.by, spa.Granted)
	lab.Eventually(t, "both to have the grant", func() bool { return len(other.grants()) == 1 })
	out, code := other.run(other.host, "spa-server", "revoke", "ann", "--config", other.dir)
	if code != 0 || !strings.Contains(out, "ended on all gateways of www") || len(one.grants()) != 0 {
		t.Errorf("revoke: %d, and %d grants elsewhere\n%s", code, len(one.grants()), out)
	}
	store.Away(true)
	lab.Eventually(t, "the store to be away", func() bool { return !other.status().Fleet.Shared.Joined })
	out, code = other.run(other.host, "spa-server", "revoke", "ann", "--config", other.dir)
	if code != 1 || !strings.Contains(out, "the other gateways of www have not confirmed it") {
		t.Errorf("revoke without the store: %d\n%s", code, out)
	}
	if out, _ := other.run(other.host, "spa-server", "status", "--config", other.dir); !strings.Contains(out,
		"www: THE STORE IS AWAY: clients of the fleet cannot knock here") {
		t.Errorf("status prints\n%s", out)
	}
}

// TestStandalone: without the store a gateway answers no client of the fleet, or decides alone, as the settings say; a
// reload changes that.
func TestStandalone(t *testing.T) {
	store, connect := standIn()
	s := newTogether(t, 2, connect)
	store.Away(true)
	packet := s.members[0].gateway.seal(request(), s.by)
	if got := s.answers(packet, 3*time.Second, s.members...); len(got) != 0 {
		t.Errorf("without the store: got %+v", got)
	}
	for _, o := range s.members {
		o.must("spa-server", "set", "--config", o.dir, "fleet.standalone=local")
		o.must("spa-server", "reload", "--config", o.dir)
	}
	packet = s.members[0].gateway.seal(request(), s.by)
	if got := s.answers(packet, lab.Patience, s.members...); len(got) != 2 {
		t.Errorf("each alone: got %+v", got)
	}
	s.wantAccess("each alone", s.members...)
}

// sockets sends a packet to each member, and returns the sockets for the answers.
func sockets(to []*office, packet []byte) []*net.UDPConn {
	conns := make([]*net.UDPConn, len(to))
	for i, o := range to {
		conns[i] = o.send("192.0.2.2", packet)
	}
	return conns
}
