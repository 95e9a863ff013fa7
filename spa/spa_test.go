package spa

import (
	"net/netip"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
)

// The cast of the tests: fixed keys, so that a failure looks the same every time.

func testKey(seed byte) keys.Key { return keys.KeyFromBytes(testBytes(seed)) }

func testGate(seed byte) keys.GateKey { return keys.GateKeyFromBytes(testBytes(seed)) }

func testBytes(seed byte) [32]byte {
	var b [32]byte
	for i := range b {
		b[i] = seed + byte(i)
	}
	return b
}

var (
	testServer = keys.ServerID{0xa0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	testNow    = time.Unix(1_800_000_000, 123_456_789)
)

const aliceID keys.ID = 0x0123456789abcdef

func alice() Sender {
	return Sender{Server: testServer, Gate: testGate(0x40), ID: aliceID, Key: testKey(0x80)}
}

func gateway() *Identity {
	return &Identity{Server: testServer, Gates: gatesOf(testGate(0x40)), Window: 30 * time.Second}
}

// clientMap is the simplest Clients.
type clientMap map[keys.ID]keys.Credential

func (m clientMap) Lookup(id keys.ID) (keys.Credential, bool) {
	c, ok := m[id]
	return c, ok
}

// onlyAlice returns a server's clients: only alice.
func onlyAlice() clientMap {
	c := &keys.Client{Name: "alice", ID: aliceID, Key: testKey(0x80), Allow: []string{"ssh"}}
	return clientMap{aliceID: {Client: *c, ID: aliceID, Key: c.Key}}
}

func openSSH() Request {
	return Request{
		ID:       RequestID{1, 2, 3},
		Type:     TypeOpen,
		Time:     testNow,
		For:      90 * time.Second,
		Source:   netip.MustParseAddr("192.0.2.2"),
		Services: []service.Service{{Name: "ssh"}, {Proto: service.UDP, Port: 60001}},
	}
}

func mustSeal(t testing.TB, r Request, s Sender) []byte {
	t.Helper()
	packet, err := Seal(r, s)
	if err != nil {
		t.Fatalf("Seal: %v", err)
	}
	return packet
}

func mustOpen(t testing.TB, packet []byte) Knock {
	t.Helper()
	k, err := Open(packet, gateway(), onlyAlice(), testNow)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return k
}

// gatesOf returns gates without an end date.
func gatesOf(keys ...keys.GateKey) []Gate {
	gates := make([]Gate, len(keys))
	for i, key := range keys {
		gates[i].Key = key
	}
	return gates
}
