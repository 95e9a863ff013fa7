package server

import (
	"encoding/hex"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/policy"
	"sallyport/spa/replay"
)

// packet returns a packet of alice's, stamped at an offset from the server's now.
func (b *bench) packet(stamp time.Duration) capture.Packet {
	b.Helper()
	return arriving(b.seal(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at.Add(stamp),
		Services: []service.Service{{Name: "ssh"}}}))
}

// as returns a packet that another sender than alice seals.
func (b *bench) as(change func(s *spa.Sender)) capture.Packet {
	b.Helper()
	alice := b.sender
	defer func() { b.sender = alice }()
	change(&b.sender)
	return b.packet(0)
}

// within restricts the networks that alice may knock from.
func within(text string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(text)} }

// A refusal is one without an answer: the error with its reason, where the path ends, and what causes it. It returns
// the refused packet; those before it were not refused.
type refusal struct {
	err     error
	verdict audit.Verdict
	make    func(b *bench) capture.Packet
}

// refusals by the name of the error.
var refusals = map[string]refusal{
	"spa.ErrLength": {spa.ErrLength, audit.Unopened, func(b *bench) capture.Packet { return arriving(make([]byte, 100)) }},
	"spa.ErrGate": {spa.ErrGate, audit.Unopened, func(b *bench) capture.Packet {
		return b.as(func(s *spa.Sender) { s.Gate = keys.NewGateKey() })
	}},
	"spa.ErrClient": {spa.ErrClient, audit.Unopened, func(b *bench) capture.Packet {
		return b.as(func(s *spa.Sender) { s.ID = keys.NewID() })
	}},
	"spa.ErrMAC": {spa.ErrMAC, audit.Unopened, func(b *bench) capture.Packet {
		return b.as(func(s *spa.Sender) { s.Key = keys.NewKey() })
	}},
	"spa.ErrStale": {spa.ErrStale, audit.Unopened,
		func(b *bench) capture.Packet { return b.packet(-31 * time.Second) }},
	"spa.ErrMalformed": {spa.ErrMalformed, audit.Unopened, func(b *bench) capture.Packet { return b.malformed("flags") }},
	"spa.ErrRevoked": {spa.ErrRevoked, audit.Unopened, func(b *bench) capture.Packet {
		b.enrol(func(c *keys.Client) { c.Revoked = b.at.UTC() })
		return b.packet(0)
	}},
	"spa.ErrRetired": {spa.ErrRetired, audit.Unopened, func(b *bench) capture.Packet {
		b.enrol(func(c *keys.Client) {
			c.Previous = &keys.Previous{ID: c.ID, Key: c.Key, Until: b.at.UTC()}
			c.ID, c.Key = keys.NewID(), keys.NewKey()
		})
		return b.packet(0)
	}},
	"spa.ErrFrame": {spa.ErrFrame, audit.Unopened, func(b *bench) capture.Packet {
		p := b.framed(b.request(spa.TypeOpen, "ssh"), 1)
		p.Frame = lab.STUN{Packet: p.Data, Local: "self", Password: "of another sender"}.Check()
		return p
	}},
	"policy.ErrStated": {policy.ErrStated, audit.Elsewhere, func(b *bench) capture.Packet {
		r := spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at, Services: []service.Service{{Name: "ssh"}},
			Source: netip.MustParseAddr("192.0.2.3")}
		return arriving(b.seal(r))
	}},
	"policy.ErrFrom": {policy.ErrFrom, audit.Elsewhere, func(b *bench) capture.Packet {
		b.enrol(func(c *keys.Client) { c.From = within("198.51.100.0/24") })
		return b.packet(0)
	}},
	"policy.ErrDeny": {policy.ErrDeny, audit.Elsewhere, func(b *bench) capture.Packet {
		b.enrol(func(c *keys.Client) { c.Deny = within("192.0.2.0/24") })
		return b.packet(0)
	}},
	"policy.ErrLink": {policy.ErrLink, audit.Elsewhere, func(b *bench) capture.Packet {
		p := b.packet(0)
		p.From = netip.MustParseAddrPort("169.254.0.2:40000")
		return p
	}},
	"replay.ErrSpent": {replay.ErrSpent, audit.Unspent, func(b *bench) capture.Packet {
		p := b.packet(0)
		b.arrive(p)
		return p
	}},
	"replay.ErrSpentElsewhere": {replay.ErrSpentElsewhere, audit.Unspent, func(b *bench) capture.Packet {
		p := b.packet(0)
		b.arrive(p)
		p.From = netip.MustParseAddrPort("192.0.2.3:40000")
		return p
	}},
	"replay.ErrFloor": {replay.ErrFloor, audit.Unspent, func(b *bench) capture.Packet {
		b.journal("new", 4096)
		return b.packet(0)
	}},
	"replay.ErrForgotten": {replay.ErrForgotten, audit.Unspent, func(b *bench) capture.Packet {
		b.arrive(b.packet(0))
		back := b.at
		b.at = b.at.Add(3 * b.s.identity.Window)
		b.arrive(b.packet(0)) // earlier nonces are forgotten
		b.at = back
		return b.packet(-time.Second)
	}},
	"replay.ErrFull": {replay.ErrFull, audit.Unspent, func(b *bench) capture.Packet {
		at := b.at
		b.at = at.Add(-time.Hour)
		b.journal("small", 1)
		b.at = at
		b.arrive(b.packet(0))
		return b.packet(0)
	}},
}

// otherwise lists the errors of these packages that are not unanswered refusals.
var otherwise = map[string]string{
	"spa.ErrReceipt":   "a client's",
	"replay.ErrReused": "answered",
}

// malformed makes the server that of a vector, and returns the vector's packet.
func (b *bench) malformed(name string) capture.Packet {
	b.Helper()
	v := readVector(b, "../testdata/vectors/malformed-"+name+".txt")
	key, gate := [32]byte(hexOf(b, v["client key"])), [32]byte(hexOf(b, v["gate key"]))
	id := lab.Value(keys.ParseID(v["client id"]))(b)
	now := lab.Value(strconv.ParseInt(v["now"], 10, 64))(b)
	b.at = time.Unix(0, now)
	b.s.identity.Server = keys.ServerID(hexOf(b, v["server id"]))
	b.s.identity.Gates = []spa.Gate{{Key: keys.GateKeyFromBytes(gate)}}
	b.enrol(func(c *keys.Client) { c.ID, c.Key = id, keys.KeyFromBytes(key) })
	return arriving(hexOf(b, v["packet"]))
}

// readVector reads the first value of each name.
func readVector(t testing.TB, path string) map[string]string {
	t.Helper()
	data := lab.Value(os.ReadFile(path))(t)
	values := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if _, known := values[name]; ok && !known {
			values[name] = value
		}
	}
	return values
}

func hexOf(t testing.TB, text string) []byte {
	t.Helper()
	data := lab.Value(hex.DecodeString(text))(t)
	return data
}

// journal gives the server a journal that starts now.
func (b *bench) journal(name string, liveNonces int) {
	b.Helper()
	journal, err := replay.Open(filepath.Join(b.s.config.Dir, name), replay.Config{Window: b.s.identity.Window,
		LiveNonces: liveNonces}, b.at)
	lab.Must(b, err)
	b.Cleanup(func() { journal.Close() })
	b.s.journal = journal
}

// TestEveryRefusalHasItsCounter: counters alone distinguish the reasons of unanswered packets.
func TestEveryRefusalHasItsCounter(t *testing.T) {
	for name, refusal := range refusals {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			p := refusal.make(b)
			before := b.s.audit.Counts()
			b.arrive(p)
			if b.event.Verdict.Spent() || b.event.Receipt.Status != 0 {
				t.Errorf("it was spent: %v", b.event.Verdict)
			}
			after, counter := b.s.audit.Counts(), refusal.verdict.String()+": "+refusal.err.Error()
			if after[counter] != before[counter]+1 {
				t.Errorf("its counter did not move: %v, then %v", before, after)
			}
			after[counter] = before[counter]
			maps.DeleteFunc(after, func(_ string, n uint64) bool { return n == 0 })
			if !maps.Equal(before, after) {
				t.Errorf("another counter moved: %v, then %v", before, after)
			}
		})
	}
}

// TestMalformedIsOneCounter: whatever is wrong with a request, no packet creates a new counter.
func TestMalformedIsOneCounter(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"flags", "type-0", "count-9"} {
		b.arrive(b.malformed(name))
	}
	if got := b.s.audit.Counts(); len(got) != 1 || got["unopened: "+spa.ErrMalformed.Error()] != 3 {
		t.Errorf("got %v", got)
	}
}

// TestNoRefusalIsForgotten: each error of these packages occurs in the tests above.
func TestNoRefusalIsForgotten(t *testing.T) {
	sentinel := regexp.MustCompile(`(?m)^(?:\t|var )(Err\w+)\b.*= `)
	found := 0
	for _, dir := range []string{"spa", "policy", "replay"} {
		path := filepath.Join("..", dir)
		if dir == "spa" {
			path = ".."
		}
		sources := lab.Value(filepath.Glob(filepath.Join(path, "*.go")))(t)
		for _, source := range sources {
			data := lab.Value(os.ReadFile(source))(t)
			for _, match := range sentinel.FindAllSubmatch(data, -1) {
				found++
				name := dir + "." + string(match[1])
				if _, ok := refusals[name]; !ok && otherwise[name] == "" {
					t.Errorf("no test makes %s come up", name)
				}
			}
		}
	}
	if found != len(refusals)+len(otherwise) {
		t.Errorf("found %d errors, the tests know %d", found, len(refusals)+len(otherwise))
	}
}

// TestRefusedElsewhereIsNotCharged: a packet that is not spent does not count towards its client's limits.
func TestRefusedElsewhereIsNotCharged(t *testing.T) {
	b := newBench(t)
	b.rule(func(c *config.Config) { c.Limits.GrantsPerHour = 1 })
	for range 3 {
		p := b.packet(0)
		b.enrol(func(c *keys.Client) { c.Deny = within("192.0.2.2/32") })
		b.arrive(p)
	}
	b.enrol(func(*keys.Client) {})
	if b.ask("ssh"); b.event.Receipt.Status != spa.Granted {
		t.Errorf("copies from where the client may not be were charged: %v", b.event.Receipt.Status)
	}
}
