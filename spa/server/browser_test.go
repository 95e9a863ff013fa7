package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"tailscale.com/net/stun"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/lab"
)

func (b *bench) request(kind spa.Type, name string) spa.Request {
	return spa.Request{ID: spa.NewRequestID(), Type: kind, Time: b.at, Services: []service.Service{{Name: name}}}
}

// framed returns a request as a browser sends it, in the check with this number.
func (b *bench) framed(r spa.Request, check byte) capture.Packet {
	b.Helper()
	packet := b.seal(r)
	for len(packet) > 188 {
		packet = b.seal(r)
	}
	return b.check(packet, check)
}

func (b *bench) check(packet []byte, check byte) capture.Packet {
	p := arriving(packet)
	password := b.sender.Key.ICEPassword(packet[:24])
	p.Frame = lab.STUN{Packet: packet, Local: "self", Password: string(password[:]),
		Transaction: [12]byte{check}}.Check()
	return p
}

// sent keeps what a server sends.
type sent struct{ all [][]byte }

func (s *sent) Send(_ capture.Packet, payload []byte, _ bool) error {
	s.all = append(s.all, bytes.Clone(payload))
	return nil
}

func (s *sent) Close() error { return nil }

// take returns what was sent since the last call.
func (s *sent) take() [][]byte {
	defer func() { s.all = nil }()
	return s.all
}

// TestBrowser: a browser's checks with one packet are one grant, one line of the log and one decision for watchers, and
// each is answered under its own transaction with the address that it came from, in fewer bytes than it has.
func TestBrowser(t *testing.T) {
	b, out := newBench(t), &sent{}
	b.s.responder = out
	w, _ := b.s.feed.Join()
	defer b.s.feed.Leave(w)
	first := b.framed(b.request(spa.TypeOpen, "ssh"), 1)
	for i := range byte(5) {
		p := b.check(first.Data, i+1)
		b.s.process(context.Background(), p)
		answers := out.take()
		if len(answers) != 1 {
			t.Fatalf("check %d: %d answers", i+1, len(answers))
		}
		id, from, err := stun.ParseResponse(answers[0])
		if err != nil || id[0] != i+1 || from != p.From || len(answers[0]) > len(p.Frame) {
			t.Errorf("check %d: got %x, %v, %v of %d bytes", i+1, id, from, err, len(answers[0]))
		}
		b.at = b.at.Add(time.Second)
	}
	if n := b.s.firewall.Count(b.at); n != 1 {
		t.Errorf("%d grants", n)
	}
	if n := len(w.Lines); n != 1 {
		t.Errorf("watchers got %d decisions", n)
	}
	counts := b.s.audit.Counts()
	if counts["granted"] != 1 || counts["rechecked"] != 4 || len(counts) != 2 {
		t.Errorf("counted %v", counts)
	}
}

// TestBrowserIsRefused: what a browser's packet asks for and may not have is refused by an error, each time.
func TestBrowserIsRefused(t *testing.T) {
	b, out := newBench(t), &sent{}
	b.s.responder = out
	p := b.framed(b.request(spa.TypeOpen, "none"), 1)
	for i := range byte(3) {
		p = b.check(p.Data, i+1)
		b.s.process(context.Background(), p)
		answers := out.take()
		if len(answers) != 1 || answers[0][0] != 1 || answers[0][1] != 0x11 || answers[0][8] != i+1 {
			t.Fatalf("got %x", answers)
		}
	}
	if verdict, _ := b.last(); verdict != "denied" {
		t.Errorf("recorded as %q", verdict)
	}
}

// deaf cannot send.
type deaf struct{ sent }

func (*deaf) Send(capture.Packet, []byte, bool) error { return errors.New("no route") }

// TestBrowserUnreachable: if the answers to a repeated check cannot be sent, the log has a line for the first, not for
// each: anyone can repeat a copy.
func TestBrowserUnreachable(t *testing.T) {
	b, said := newBench(t), &lines{}
	b.s.responder, b.s.log = &deaf{}, slog.New(witness{slog.DiscardHandler, said.add})
	p := b.framed(b.request(spa.TypeOpen, "ssh"), 1)
	for range 5 {
		b.s.process(context.Background(), p)
	}
	if !said.has("could not send a receipt") || len(said.list) != 1 {
		t.Errorf("the log says %q", said.list)
	}
}

// TestBrowserLost: a further check does not say that a port is open which was closed or revoked since. It opens
// nothing.
func TestBrowserLost(t *testing.T) {
	for name, lose := range map[string]func(b *bench){
		"closed": func(b *bench) { b.s.process(context.Background(), b.framed(b.request(spa.TypeClose, "ssh"), 9)) },
		"revoked": func(b *bench) {
			_, err := b.s.firewall.Revoke(context.Background(), firewall.Match{Client: "alice"}, b.at)
			lab.Must(b, err)
		},
	} {
		b, out := newBench(t), &sent{}
		b.s.responder = out
		p := b.framed(b.request(spa.TypeOpen, "ssh"), 1)
		b.s.process(context.Background(), p)
		b.at = b.at.Add(time.Second)
		lose(b)
		out.take()
		b.s.process(context.Background(), b.check(p.Data, 2))
		if answers := out.take(); len(answers) != 1 || !bytes.Equal(answers[0][:2], []byte{1, 0x11}) {
			t.Errorf("%s: answered %x", name, answers)
		}
		if n := b.s.firewall.Count(b.at); n != 0 {
			t.Errorf("%s: %d grants", name, n)
		}
	}
}

// TestBrowserUnanswered: nothing is answered that another could have sent: a copy from another address or port, to
// another address, in another's STUN request or alone; nor what is stale, what a floor refuses, or the checks of a
// client whose key was revoked, or with receipts off.
func TestBrowserUnanswered(t *testing.T) {
	for name, change := range map[string]func(b *bench, p *capture.Packet){
		"other address": func(b *bench, p *capture.Packet) { p.From = netip.MustParseAddrPort("192.0.2.3:40000") },
		"other port":    func(b *bench, p *capture.Packet) { p.From = netip.MustParseAddrPort("192.0.2.2:40001") },
		"other target":  func(b *bench, p *capture.Packet) { p.To = netip.MustParseAddrPort("192.0.2.9:62201") },
		"other password": func(b *bench, p *capture.Packet) {
			p.Frame = lab.STUN{Packet: p.Data, Local: "self", Password: "another's"}.Check()
		},
		"no frame": func(b *bench, p *capture.Packet) { p.Frame = nil },
		"stale":    func(b *bench, p *capture.Packet) { b.at = b.at.Add(31 * time.Second) },
		"revoked": func(b *bench, p *capture.Packet) {
			b.enrol(func(c *keys.Client) { c.Revoked = b.at.UTC() })
		},
		"receipts off": func(b *bench, p *capture.Packet) { b.s.config.Receipts = false },
		"pushed out": func(b *bench, p *capture.Packet) {
			for range keptChecks {
				b.s.process(context.Background(), b.framed(b.request(spa.TypeOpen, "ssh"), 1))
			}
		},
		"too early": func(b *bench, p *capture.Packet) { b.journal("new", 4096) },
	} {
		b, out := newBench(t), &sent{}
		b.s.responder = out
		p := b.framed(b.request(spa.TypeOpen, "ssh"), 1)
		b.s.process(context.Background(), p)
		change(b, &p)
		out.take()
		before := b.s.firewall.Count(b.at)
		b.s.process(context.Background(), p)
		if answers := out.take(); len(answers) != 0 || b.s.firewall.Count(b.at) > before {
			t.Errorf("%s: answered %x", name, answers)
		}
	}
}

// TestBrowserRetry: a second packet of the same command is answered as the first, and prolongs nothing.
func TestBrowserRetry(t *testing.T) {
	b, out := newBench(t), &sent{}
	b.s.responder = out
	r := b.request(spa.TypeOpen, "ssh")
	b.s.process(context.Background(), b.framed(r, 1))
	until := b.s.firewall.Grants(b.at)[0].Until
	b.at = b.at.Add(2 * time.Second)
	r.Time = b.at
	b.s.process(context.Background(), b.framed(r, 1))
	if answers := out.take(); len(answers) != 2 || !bytes.Equal(answers[1][:2], []byte{1, 1}) {
		t.Errorf("got %x", answers)
	}
	if got := b.s.firewall.Grants(b.at); len(got) != 1 || !got[0].Until.Equal(until) {
		t.Errorf("got %v, want until %v", got, until)
	}
	if counts := b.s.audit.Counts(); counts[audit.Repeated.String()] != 1 {
		t.Errorf("counted %v", counts)
	}
}
