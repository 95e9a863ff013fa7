package main

import (
	"bytes"
	"crypto/rand"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// silentTest is a packet that must not be answered.
type silentTest struct {
	name    string
	packet  func() []byte // made when it is sent: a packet refused for another reason must not be stale
	counted string        // its name in the summary, if it authenticates
}

func (g *gateway) silentTests(alice, bob, carol spa.Sender) []silentTest {
	good := func() []byte { return g.seal(request(), alice) }
	fixed := func(packet []byte) func() []byte { return func() []byte { return packet } }
	flipped := func(i int) func() []byte { return func() []byte { return flip(good(), i) } }
	at := func(d time.Duration) func() []byte {
		return func() []byte { r := request(); r.Time = time.Now().Add(d); return g.seal(r, alice) }
	}
	as := func(change func(*spa.Sender)) func() []byte {
		return func() []byte { s := alice; change(&s); return g.seal(request(), s) }
	}
	noise := make([]byte, 200)
	rand.Read(noise)
	return []silentTest{
		{"empty", fixed(nil), ""},
		{"one byte", fixed([]byte{1}), ""},
		{"truncated by a byte", func() []byte { return good()[:167] }, ""},
		{"oversized", func() []byte { return append(good(), make([]byte, 200)...) }, ""},
		{"far too large", fixed(make([]byte, 1400)), ""},
		{"random", fixed(noise), ""},
		{"first bit flipped", flipped(0), ""},
		{"body flipped", flipped(60), ""},
		{"last byte flipped", flipped(-1), ""},
		{"good header, bad body", func() []byte { return append(good()[:40], noise[40:]...) }, ""},
		{"unknown client", as(func(s *spa.Sender) { s.ID = keys.NewID() }), ""},
		{"another's key", as(func(s *spa.Sender) { s.Key = bob.Key }), ""},
		{"for another server", as(func(s *spa.Sender) { s.Server = keys.NewServerID() }), ""},
		{"other gate", as(func(s *spa.Sender) { s.Gate = keys.NewGateKey() }), ""},
		{"revoked client", func() []byte { return g.seal(request(), carol) }, "carol: 1 × revoked client"},
		{"stale", at(-31 * time.Second), "× stale packet"},
		{"from the future", at(90 * time.Second), "× stale packet"},
	}
}

// TestRefusedInSilence sends packets that must not open, spend, answer or record anything.
func TestRefusedInSilence(t *testing.T) {
	g := newGateway(t)
	bob := sender(g.enrol("bob", "web"))
	carol := sender(g.enrol("carol", "ssh"))
	g.must("spa-keygen", "revoke", "carol", "--config", g.dir)
	g.serve(":22")
	g.start()
	alice := sender(g.profile())

	tests := g.silentTests(alice, bob, carol)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conn := g.send("192.0.2.2", test.packet())
			g.settle(bob)
			conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			var buf [2048]byte
			if n, err := conn.Read(buf[:]); err == nil {
				t.Errorf("answered with %d bytes, want silence", n)
			}
			g.wantDark("192.0.2.2", "192.0.2.1:22", "afterwards")
		})
	}
	for _, test := range tests {
		if test.counted == "" {
			continue
		}
		lab.Eventually(t, "a summary to report "+test.name, func() bool {
			return strings.Contains(g.server.log(), test.counted)
		})
	}
	g.wantAudited("alice")
	g.wantAudited("carol")
	if log := g.server.log(); strings.Count(log, "\n") > 10+2*len(tests) {
		t.Errorf("the log has a line a packet:\n%s", log)
	}
}

func flip(packet []byte, i int) []byte {
	packet = bytes.Clone(packet)
	packet[(i+len(packet))%len(packet)] ^= 1
	return packet
}

// TestRefusedWithReason sends packets that are spent, refused, and answered with the reason.
func TestRefusedWithReason(t *testing.T) {
	g := newGateway(t)
	expired := sender(g.enrol("expired", "ssh"))
	g.edit("expired", "expires = 2020-01-01T00:00:00Z\n")
	strict := sender(g.enrol("strict", "ssh"))
	g.edit("strict", "require_source = true\n")
	g.serve(":22")
	g.start()
	alice := sender(g.profile())

	asking := func(services ...service.Service) spa.Request { r := request(); r.Services = services; return r }
	closing := func(services ...service.Service) spa.Request {
		r := asking(services...)
		r.Type = spa.TypeClose
		return r
	}
	tests := []struct {
		name   string
		sender spa.Sender
		req    spa.Request
		want   spa.Status
	}{
		{"expired client", expired, request(), spa.ReasonExpired},
		{"no such service", alice, asking(service.Service{Name: "nothing"}), spa.ReasonNoService},
		{"service of others", alice, asking(service.Service{Name: "web"}), spa.ReasonNotAllowed},
		{"all or none", alice, asking(service.Service{Name: "ssh"}, service.Service{Name: "web"}), spa.ReasonNotAllowed},
		{"raw port of others", alice, asking(service.Service{Proto: service.TCP, Port: 22}), spa.ReasonNotAllowed},
		{"close of what others may open", alice, closing(service.Service{Name: "web"}), spa.ReasonNotAllowed},
		{"close by an expired client", expired, closing(service.Service{Name: "ssh"}), spa.ReasonExpired},
		{"source not stated", strict, request(), spa.ReasonSourceRequired},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			packet := g.seal(test.req, test.sender)
			g.wantReceipt("192.0.2.2", packet, test.sender, test.want)
			g.wantDark("192.0.2.2", "192.0.2.1:22", "afterwards")
			if again := g.exchange("192.0.2.2", packet, test.sender, silence); again != nil {
				t.Errorf("the packet was answered twice (%v): it was not spent", again.Status)
			}
		})
	}
	g.wantAudited("alice", "denied", "denied", "denied", "denied", "denied")
}

// edit adds lines to a client's file.
func (g *gateway) edit(client, lines string) {
	g.t.Helper()
	appendFile(g.t, filepath.Join(g.dir, "clients", client+".toml"), lines)
}

// TestSourceOfAnother: a packet from another address than it states is not spent: it stays valid for its owner.
func TestSourceOfAnother(t *testing.T) {
	g, alice := freshGateway(t)
	r := request()
	r.Source = lab2
	packet := g.seal(r, alice)
	if receipt := g.exchange("192.0.2.3", packet, alice, silence); receipt != nil {
		t.Errorf("a copy from another address was answered: %v", receipt.Status)
	}
	g.wantDark("192.0.2.3", "192.0.2.1:22", "after the copy")
	g.wantDark("192.0.2.2", "192.0.2.1:22", "after the copy")
	g.wantAudited("alice")
	lab.Eventually(t, "an alarm", func() bool {
		return strings.Contains(g.server.log(), "someone may be copying") && strings.Contains(g.server.log(), "192.0.2.3")
	})
	g.wantReceipt("192.0.2.2", packet, alice, spa.Granted)
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "after the original")
	g.wantDark("192.0.2.3", "192.0.2.1:22", "after the original")
}

// TestFromAndDeny: a client's file says from where it may knock; from elsewhere it gets no answer.
func TestFromAndDeny(t *testing.T) {
	g := newGateway(t)
	g.edit("alice", "from = [\"192.0.2.0/30\"]\ndeny = [\"192.0.2.3/32\"]\n")
	g.start()
	alice := sender(g.profile())
	for from, want := range map[string]bool{"192.0.2.2": true, "192.0.2.3": false, "192.0.2.5": false} {
		receipt := g.exchange(from, g.seal(request(), alice), alice, wait(want))
		if got := receipt != nil; got != want {
			t.Errorf("from %s: answered %v, want %v", from, got, want)
		}
	}
}

// TestRetry: packets of one command have one outcome, and act once.
func TestRetry(t *testing.T) {
	g, alice := freshGateway(t) // a retry counts as one while a packet is fresh
	r := request()
	r.For = 5 * time.Minute
	first := g.wantReceipt("192.0.2.2", g.seal(r, alice), alice, spa.Granted)
	r.Time = time.Now()
	second := g.wantReceipt("192.0.2.2", g.seal(r, alice), alice, spa.Granted)
	if a, b := first.Time.Add(first.Services[0].For),
		second.Time.Add(second.Services[0].For); b.Sub(a).Abs() > 2*time.Millisecond {
		t.Errorf("the retry ends at %v, the first try at %v: want the same", b, a)
	}
	g.wantAudited("alice", "granted", "repeated")

	t.Run("for something else", func(t *testing.T) {
		other := r
		other.For = 10 * time.Minute
		g.wantReceipt("192.0.2.2", g.seal(other, alice), alice, spa.ReasonIDReused)
	})
	t.Run("after kill -9", func(t *testing.T) {
		g.server.stop(9)
		g.start()
		r.Time = time.Now()
		third := g.wantReceipt("192.0.2.2", g.seal(r, alice), alice, spa.Granted)
		if a, b := first.Time.Add(first.Services[0].For),
			third.Time.Add(third.Services[0].For); b.Sub(a).Abs() > 2*time.Millisecond {
			t.Errorf("the retry ends at %v, the first try at %v: want the same", b, a)
		}
	})
	t.Run("not after the end", func(t *testing.T) {
		short := request()
		short.For = time.Second
		first := g.wantReceipt("192.0.2.3", g.seal(short, alice), alice, spa.Granted)
		g.await(first.Time.Add(short.For))
		lab.Eventually(t, "the grant to end", func() bool { return !g.reaches("192.0.2.3", "192.0.2.1:22") })
		short.Time = time.Now()
		late := g.wantReceipt("192.0.2.3", g.seal(short, alice), alice, spa.Granted)
		if late.Services[0].For != 0 {
			t.Errorf("the answer to the retry says that it is open for %v", late.Services[0].For)
		}
		g.wantDark("192.0.2.3", "192.0.2.1:22", "after a retry that came when the grant was over")
	})
}

// TestDelayedOpen: a packet that was held back does not reopen a closed service.
func TestDelayedOpen(t *testing.T) {
	g, alice := freshGateway(t)
	heldBack := g.seal(request(), alice)
	opened := request()
	g.wantReceipt("192.0.2.2", g.seal(opened, alice), alice, spa.Granted)
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "opened")
	closing := request()
	closing.Type = spa.TypeClose
	g.wantReceipt("192.0.2.2", g.seal(closing, alice), alice, spa.Closed)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "closed")

	g.wantReceipt("192.0.2.2", heldBack, alice, spa.ReasonSuperseded)
	opened.Time = time.Now()
	g.wantReceipt("192.0.2.2", g.seal(opened, alice), alice, spa.ReasonSuperseded)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "after the packet that was held back and a late retry")
	g.server.stop(9)
	g.start()
	opened.Time = time.Now()
	g.wantReceipt("192.0.2.2", g.seal(opened, alice), alice, spa.ReasonSuperseded)

	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "opened again")
}
