package server

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// newWide is a final whose clients may let in networks of a /24, and 203.0.113.0/24 from anywhere.
func newWide(t *testing.T) *final {
	f := newFinal(t, 0, 0)
	for _, name := range []string{"alice", "bob"} {
		c, _ := f.s.clients.Client(name)
		wide := *c
		wide.Widest4, wide.Delegate = 24, []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
		lab.Must(t, keys.WriteClient(f.s.dir, &wide, false))
		lab.Value(f.s.clients.Reload(name))(t)
	}
	f.client, _ = f.s.clients.Client("alice")
	return f
}

// asks returns a command that names a network.
func (f *final) asks(client string, kind spa.Type, network, service string) command {
	c := f.command(client, kind, f.at, service)
	c.LetIn = netip.MustParsePrefix(network)
	return c
}

func (f *final) wants(status spa.Status, c command, from, when string) {
	f.Helper()
	f.arrive(f.packet(c, f.at, from))
	if got := f.event.Receipt.Status; got != status {
		f.Errorf("%s: %v, want %v", when, got, status)
	}
}

func (f *final) holds(want ...string) {
	f.Helper()
	var got []string
	for _, g := range f.s.firewall.Grants(f.at) {
		got = append(got, g.Client+" "+g.Service+" "+g.Peer().String())
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		f.Errorf("held: %q, want %q", got, want)
	}
}

// TestCloseInNetwork: a close from any address of a network ends its client's grant for that, and leaves those of
// others and those for other addresses.
func TestCloseInNetwork(t *testing.T) {
	f := newWide(t)
	f.wants(spa.Granted, f.asks("alice", spa.TypeOpen, "198.51.100.0/24", "ssh"), "198.51.100.7", "alice's /24")
	f.wants(spa.Granted, f.asks("alice", spa.TypeOpen, "203.0.113.9/32", "ssh"), "198.51.100.7", "alice's laptop")
	f.wants(spa.Granted, f.asks("bob", spa.TypeOpen, "198.51.100.0/25", "ssh"), "198.51.100.8", "bob's /25")
	f.wants(spa.Granted, f.asks("bob", spa.TypeOpen, "203.0.113.9/32", "ssh"), "203.0.113.9", "bob's own address")
	f.holds("alice ssh 198.51.100.0/24", "alice ssh 203.0.113.9", "bob ssh 198.51.100.0/25", "bob ssh 203.0.113.9")
	f.wants(spa.Closed, f.command("alice", spa.TypeClose, f.at, "tcp/22"), "198.51.100.200", "a close from it")
	f.holds("alice ssh 203.0.113.9", "bob ssh 198.51.100.0/25", "bob ssh 203.0.113.9")
	f.wants(spa.Closed, f.asks("alice", spa.TypeClose, "203.0.113.0/24", "ssh"), "192.0.2.2", "a close of the laptop's")
	f.holds("bob ssh 198.51.100.0/25", "bob ssh 203.0.113.9")
	if last := f.event.Receipt.LetIn; last.IsValid() {
		t.Errorf("a close was answered with %v let in", last)
	}
}

// TestRevokedInNetwork: revoking an address ends each grant that lets it in, and no earlier packet lets it in again, by
// itself or in a network.
func TestRevokedInNetwork(t *testing.T) {
	f := newWide(t)
	held := []command{f.asks("alice", spa.TypeOpen, "198.51.100.0/25", "ssh"),
		f.asks("bob", spa.TypeOpen, "203.0.113.9/32", "web")}
	apart := f.asks("alice", spa.TypeOpen, "203.0.113.8/32", "web")
	f.wants(spa.Granted, f.asks("alice", spa.TypeOpen, "198.51.100.0/24", "ssh"), "198.51.100.7", "alice's /24")
	f.wants(spa.Granted, f.asks("bob", spa.TypeOpen, "203.0.113.0/24", "ssh"), "192.0.2.2", "bob's /24")
	for _, address := range []string{"198.51.100.66", "203.0.113.9"} {
		revoked, err := f.s.revoke(t.Context(), control.Request{Source: netip.MustParseAddr(address)})
		if err != nil || len(revoked.Ended) != 1 || !strings.HasSuffix(revoked.Ended[0].Whom(), ".0/24") {
			t.Fatalf("revoking %s: %+v, %v", address, revoked, err)
		}
	}
	f.holds()
	for _, c := range held {
		f.wants(spa.ReasonSuperseded, c, "198.51.100.7", "an earlier packet")
	}
	f.wants(spa.Granted, apart, "198.51.100.7", "an earlier packet for another address alone")
	f.at = f.at.Add(f.s.config.Window + time.Second)
	f.wants(spa.Granted, f.asks("alice", spa.TypeOpen, "198.51.100.0/24", "ssh"), "198.51.100.7", "a later packet")
}

// TestNetworkNarrowed: a file that allows less ends what it no longer allows, and refuses what was asked for before.
func TestNetworkNarrowed(t *testing.T) {
	for name, change := range map[string]func(*keys.Client){
		"narrower": func(c *keys.Client) { c.Widest4 = 25 },
		"none":     func(c *keys.Client) { c.Widest4 = 0 },
		"denied":   func(c *keys.Client) { c.Deny = []netip.Prefix{netip.MustParsePrefix("198.51.100.99/32")} },
	} {
		f := newWide(t)
		held := f.asks("alice", spa.TypeOpen, "198.51.100.0/24", "web")
		f.wants(spa.Granted, f.asks("alice", spa.TypeOpen, "198.51.100.0/24", "ssh"), "198.51.100.7", name)
		f.wants(spa.Granted, f.command("alice", spa.TypeOpen, f.at, "ssh"), "198.51.100.7", name)
		f.becomes(change)
		f.holds("alice ssh 198.51.100.7")
		f.becomes(func(*keys.Client) {})
		f.wants(spa.ReasonSuperseded, held, "198.51.100.7", name+", then given back")
	}
	f := newWide(t)
	f.wants(spa.Granted, f.asks("alice", spa.TypeOpen, "203.0.113.0/24", "ssh"), "203.0.113.7", "lent")
	f.becomes(func(c *keys.Client) { c.Delegate = nil })
	f.holds("alice ssh 203.0.113.0/24") // which is around the address that asked for it
}

// TestReceiptOfNetwork: the receipt names what was let in; so do a retry of it from another address, and the audit log.
func TestReceiptOfNetwork(t *testing.T) {
	f := newWide(t)
	c := f.asks("alice", spa.TypeOpen, "198.51.100.0/24", "ssh")
	for _, from := range []string{"198.51.100.7", "198.51.100.8"} {
		f.wants(spa.Granted, c, from, "a packet")
		if r := f.event.Receipt; r.LetIn != c.LetIn || r.Source != c.LetIn.Addr() {
			t.Errorf("the receipt lets in %v, %v", r.LetIn, r.Source)
		}
	}
	f.holds("alice ssh 198.51.100.0/24")
	log := string(lab.Value(os.ReadFile(filepath.Join(f.s.config.Dir, "audit")))(t))
	if n := strings.Count(log, `"let_in":"198.51.100.0/24"`); n != 2 {
		t.Errorf("the audit log names the network %d times:\n%s", n, log)
	}
	other := c
	other.LetIn = netip.MustParsePrefix("198.51.100.0/25")
	f.wants(spa.ReasonIDReused, other, "198.51.100.7", "the same id for another network")
	other.LetIn = netip.Prefix{}
	f.wants(spa.ReasonIDReused, other, "198.51.100.7", "the same id for the sender")
}
