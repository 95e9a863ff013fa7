package server

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/capture"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// rename gives alice's file another name, and waits until the server accepts it.
func (b *bench) rename(old, name string) {
	b.Helper()
	lab.Must(b, os.Rename(filepath.Join(b.s.clientsDir(), old+keys.Suffix),
		filepath.Join(b.s.clientsDir(), name+keys.Suffix)))
	b.sees(old, name)
}

// sees makes the server read these files again, and accept that some are missing.
func (b *bench) sees(names ...string) {
	b.Helper()
	waiting := make(unsettled)
	for _, name := range names {
		waiting.note(name, b.s.reloadClient(b.Context(), name), time.Now())
	}
	waiting.over()
	b.s.settle(b.Context(), waiting)
}

// TestFloorsAreOfKeys: an older packet does not open what was ended, whatever the client's file is called by then.
func TestFloorsAreOfKeys(t *testing.T) {
	for name, end := range map[string]func(b *bench){
		"revoked by command": func(b *bench) { b.s.revoke(b.Context(), control.Request{Client: "alice"}) },
		"closed": func(b *bench) {
			b.take(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeClose, Time: b.at,
				Services: []service.Service{{Name: "ssh"}}})
		},
		"taken away": func(b *bench) {
			b.write(func(c *keys.Client) { c.Allow = []string{"web"} })
			b.reloads()
			b.write(func(*keys.Client) {})
			b.reloads()
		},
		"revoked in the file": func(b *bench) {
			b.write(func(c *keys.Client) { c.Revoked = time.Unix(1, 0) })
			b.reloads()
			b.write(func(*keys.Client) {})
			b.reloads()
		},
		"gone": func(b *bench) {
			os.Remove(filepath.Join(b.s.clientsDir(), "alice.toml"))
			b.reloads()
			keys.WriteClient(b.s.clientsDir(), b.client, true)
			b.reloads()
		},
		"revoked while its file is bad": func(b *bench) {
			b.s.process(b.Context(), b.packet(-2*time.Second))
			os.WriteFile(filepath.Join(b.s.clientsDir(), "alice.toml"), []byte("x"), 0o600)
			b.sees("alice")
			b.at = b.at.Add(time.Minute) // past what that refuses
			b.s.revoke(b.Context(), control.Request{Client: "alice", Cut: true})
			b.write(func(*keys.Client) {})
			b.sees("alice")
		},
	} {
		for _, how := range []string{"while it runs", "while it does not"} {
			b, _ := newReloaded(t)
			late := b.packet(-time.Second)
			start := b.at
			if end(b); b.at != start {
				late = b.packet(-time.Second)
			}
			if how == "while it runs" {
				b.rename("alice", "al")
			} else { // only the journal knows it
				lab.Must(t, os.Rename(filepath.Join(b.s.clientsDir(), "alice.toml"),
					filepath.Join(b.s.clientsDir(), "al.toml")))
				b.s.clients, _ = keys.LoadRegistry(b.s.clientsDir())
			}
			if b.arrive(late); b.event.Client != "al" || b.event.Receipt.Status != spa.ReasonSuperseded {
				t.Errorf("%s, renamed %s: an earlier packet is %s's: %v, %v", name, how, b.event.Client, b.event.Receipt.Status,
					b.event.Err)
			}
		}
	}
}

// TestRenamedFile: renaming a client's file takes nothing away, so the client's next request is granted.
func TestRenamedFile(t *testing.T) {
	b, _ := newReloaded(t)
	packet := b.packet(0)
	b.rename("alice", "al")
	if b.arrive(packet); b.event.Client != "al" || b.event.Receipt.Status != spa.Granted {
		t.Errorf("the packet is %s's: %v, %v", b.event.Client, b.event.Receipt.Status, b.event.Err)
	}
}

// TestRevokedWhileDown: a revocation that no running server saw, and that is taken back, still stops earlier packets.
func TestRevokedWhileDown(t *testing.T) {
	b, _ := newReloaded(t)
	late := b.packet(-time.Second)
	b.write(func(c *keys.Client) { c.Revoked = time.Unix(1, 0) })
	b.s.clients, _ = keys.LoadRegistry(b.s.clientsDir()) // as a start reads it
	b.write(func(*keys.Client) {})
	b.sees("alice")
	if b.arrive(late); b.event.Receipt.Status != spa.ReasonSuperseded {
		t.Errorf("a packet from before the revocation: %v, %v", b.event.Receipt.Status, b.event.Err)
	}
}

// TestCloseOfEachKey: a close stops older packets, whichever of the client's keys the close and the packets were made
// with.
func TestCloseOfEachKey(t *testing.T) {
	for _, closer := range []int{0, 1} {
		b, _ := newReloaded(t)
		rotated := *b.client
		rotated.Rotate(b.at.Add(time.Hour).UTC().Truncate(time.Second))
		lab.Must(t, keys.WriteClient(b.s.clientsDir(), &rotated, false))
		b.reloads()
		sender := func(n int) func(s *spa.Sender) {
			c := rotated.Credentials()[n]
			return func(s *spa.Sender) { s.ID, s.Key = c.ID, c.Key }
		}
		late := []capture.Packet{b.as(sender(0)), b.as(sender(1))}
		was := b.sender
		sender(closer)(&b.sender)
		b.take(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeClose, Time: b.at,
			Services: []service.Service{{Name: "ssh"}}})
		b.sender = was
		if b.event.Receipt.Status != spa.Closed {
			t.Fatal(b.event.Receipt.Status, b.event.Err)
		}
		for n, p := range late {
			if b.arrive(p); b.event.Receipt.Status != spa.ReasonSuperseded {
				t.Errorf("closed with key %d, a packet of key %d: %v, %v", closer, n, b.event.Receipt.Status, b.event.Err)
			}
		}
	}
}

var keyTakenTests = map[string]struct {
	before, change func(c *keys.Client, now time.Time)
	ends           bool
}{
	"no overlap":            {nil, func(c *keys.Client, now time.Time) { c.Rotate(now) }, true},
	"another, nothing left": {nil, func(c *keys.Client, now time.Time) { c.Rotate(now); c.Previous = nil }, true},
	"the same id":           {nil, func(c *keys.Client, now time.Time) { c.Key = keys.NewKey() }, true},
	"another id":            {nil, func(c *keys.Client, now time.Time) { c.ID = keys.NewID() }, true},
	"both":                  {overlapping, func(c *keys.Client, now time.Time) { c.Rotate(now); c.Rotate(now) }, true},
	"the one that was left": {func(c *keys.Client, now time.Time) { c.Rotate(now) },
		func(c *keys.Client, now time.Time) { c.Rotate(now) }, true},
	"overlap":           {nil, overlapping, false},
	"the previous ends": {overlapping, func(c *keys.Client, now time.Time) { c.Previous.Until = now }, false},
	"the newer is lost": {overlapping, func(c *keys.Client, now time.Time) { c.ID, c.Key = keys.NewID(), keys.NewKey() },
		false},
	"terms": {nil, func(c *keys.Client, now time.Time) { c.MaxFor = time.Hour }, false},
}

// TestKeyTaken: if a client has lost all its keys, its grants end and older packets open nothing, even if the key is
// given back. A key with a new id opens at once. While one of its keys is valid, nothing ends.
func TestKeyTaken(t *testing.T) {
	for name, test := range keyTakenTests {
		for _, reload := range []bool{false, true} {
			b, _ := newReloaded(t)
			now := b.at.UTC().Truncate(time.Second)
			c := *b.client
			if test.before != nil {
				test.before(&c, now.Add(-time.Second))
			}
			put := func(c keys.Client) {
				t.Helper()
				lab.Must(t, keys.WriteClient(b.s.clientsDir(), &c, false))
				if reload {
					b.reloads()
				} else if err := b.s.reloadClient(t.Context(), "alice"); err != nil {
					t.Fatal(err)
				}
			}
			put(c)
			b.sender.ID, b.sender.Key = c.ID, c.Key
			late := b.packet(-time.Second)
			if b.arrive(b.packet(0)); b.event.Receipt.Status != spa.Granted {
				t.Fatal(b.event.Err)
			}
			after := c
			if c.Previous != nil {
				previous := *c.Previous
				after.Previous = &previous
			}
			test.change(&after, now)
			put(after)
			if held := b.s.firewall.Grants(b.at); (len(held) == 0) != test.ends {
				t.Errorf("%s, reload %v: held %v", name, reload, held)
			}
			b.sender.ID, b.sender.Key = after.ID, after.Key
			if b.arrive(b.packet(0)); b.event.Receipt.Status != spa.Granted && after.ID != c.ID {
				t.Errorf("%s, reload %v: a packet of the new key: %v", name, reload, b.event.Err)
			}
			put(c)
			if b.arrive(late); test.ends && b.event.Receipt.Status != spa.ReasonSuperseded {
				t.Errorf("%s, reload %v: an earlier packet: %v, %v", name, reload, b.event.Receipt.Status, b.event.Err)
			}
		}
	}
}

// overlapping gives a client another key in addition to the one that it has.
func overlapping(c *keys.Client, now time.Time) { c.Rotate(now.Add(time.Hour)) }

// TestRevokedBesideACopy: whichever of two files with one key is revoked while the server runs, its grants end, and the
// key opens nothing.
func TestRevokedBesideACopy(t *testing.T) {
	for _, name := range []string{"al", "alice-old", "zed"} { // the first counts instead of alice
		for _, revoked := range []string{name, "alice"} {
			b, _ := newReloaded(t)
			c := *b.client
			c.Name = name
			put := func(c keys.Client) {
				lab.Must(t, keys.WriteClient(b.s.clientsDir(), &c, false))
				b.sees(c.Name)
			}
			lab.Must(t, keys.WriteClient(b.s.clientsDir(), &c, true))
			b.sees(name)
			b.at = b.at.Add(2 * b.s.config.Window)
			if b.arrive(b.packet(0)); b.event.Receipt.Status != spa.Granted {
				t.Fatal(b.event.Err)
			}
			c.Name, c.Revoked = revoked, time.Unix(1, 0)
			put(c)
			if held := b.s.firewall.Grants(b.at); len(held) > 0 {
				t.Errorf("%s revoked beside %s: held %v", revoked, name, held)
			}
			late := b.packet(time.Second)
			if b.arrive(late); b.event.Receipt.Status != 0 {
				t.Errorf("%s revoked beside %s: %v", revoked, name, b.event.Receipt.Status)
			}
			os.Remove(filepath.Join(b.s.clientsDir(), revoked+keys.Suffix))
			b.sees(revoked)
			if b.arrive(late); b.event.Receipt.Status != spa.ReasonSuperseded {
				t.Errorf("%s, revoked beside %s, is gone: an earlier packet: %v, %v", revoked, name, b.event.Receipt.Status,
					b.event.Err)
			}
		}
	}
}
