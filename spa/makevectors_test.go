package spa

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
)

// A scene is one vector before it is written: alice knocks at the gateway, with one difference from a normal knock.
type scene struct {
	about   string
	verdict string

	request Request
	plain   []byte // replaces request's encoding
	length  int
	sender  Sender
	mend    func(packet []byte) []byte

	now     time.Time
	gates   []keys.GateKey
	revoked time.Time
	until   time.Time
}

func newScene(verdict, about string) scene {
	return scene{
		about: about, verdict: verdict,
		request: openSSH(), length: 200, sender: alice(),
		now: testNow, gates: []keys.GateKey{testGate(0x40)},
	}
}

// makeVectors returns the text of every vector by its name.
func makeVectors(t *testing.T) map[string]string {
	made := map[string]string{}
	add := func(name, verdict, about string, change func(s *scene)) {
		s := newScene(verdict, about)
		change(&s)
		made[name] = s.text(t, name)
	}
	addOK(add)
	addRefusedBeforeMAC(add)
	addRefusedAfterMAC(add)
	addReceipts(t, made)
	addTokens(made)
	return made
}

type addFunc func(name, verdict, about string, change func(s *scene))

// seedRandom makes all later randomness depend only on the vector's name, so that a new vector changes no other.
func seedRandom(t *testing.T, name string) {
	sum := sha256.Sum256([]byte(name))
	cryptotest.SetGlobalRandom(t, binary.BigEndian.Uint64(sum[:8]))
}

func addOK(add addFunc) {
	add("ok-open", "ok", "A service by name and one by port, a stated source, a duration.", func(*scene) {})
	add("ok-observed", "ok", "No stated source, the service's own duration.", func(s *scene) {
		s.request = Request{ID: RequestID{0xff}, Type: TypeOpen, Time: testNow, Services: []service.Service{{Name: "ssh"}}}
	})
	add("ok-ipv6", "ok", "A stated IPv6 source.", func(s *scene) { s.request.Source = deniedReceipt().Source })
	add("ok-close", "ok", "A close.", func(s *scene) { s.request.Type, s.request.For = TypeClose, 0 })
	add("ok-eight", "ok", "Eight services.", func(s *scene) { s.request.Services = ports(1, 8) })
	add("ok-longest-for", "ok", "The longest duration.", func(s *scene) { s.request.For = maxFor })
	add("ok-full", "ok", "A request of 96 bytes: no padding in a packet of 168.", func(s *scene) {
		s.request.Services = []service.Service{{Name: strings.Repeat("a", 32)}, {Name: strings.Repeat("b", 14)}}
		s.length = MinLen
	})
	add("ok-continued", "ok", "Sealed a minute after the command's first packet, whose time it tells.", func(s *scene) {
		s.request.First = testNow.Add(-time.Minute)
	})
	add("ok-continued-full", "ok", "The same in a request of 96 bytes.", func(s *scene) {
		s.request.First = testNow.Add(-time.Minute)
		s.request.Services = []service.Service{{Name: strings.Repeat("a", 32)}, {Name: strings.Repeat("b", 6)}}
		s.length = MinLen
	})
	add("ok-let-in", "ok", "A network in place of the sender's address.", func(s *scene) {
		s.request.LetIn = netip.MustParsePrefix("198.51.100.0/24")
	})
	add("ok-let-in-address", "ok", "An IPv6 address in place of the sender's.", func(s *scene) {
		s.request.LetIn = netip.MustParsePrefix("2001:db8::7/128")
	})
	add("ok-let-in-continued-full", "ok", "A network in a continued request of 96 bytes.", func(s *scene) {
		s.request.First, s.request.LetIn = testNow.Add(-time.Minute), netip.MustParsePrefix("2001:db8:100::/48")
		s.request.Services, s.length = []service.Service{{Name: strings.Repeat("a", 22)}}, MinLen
	})
	add("ok-let-in-close", "ok", "A close of what lets in a network.", func(s *scene) {
		s.request.Type, s.request.For = TypeClose, 0
		s.request.LetIn = netip.MustParsePrefix("198.51.100.0/24")
	})
	add("ok-length-168", "ok", "The shortest packet.", func(s *scene) { s.length = MinLen })
	add("ok-length-256", "ok", "The longest packet.", func(s *scene) { s.length = MaxLen })
	add("ok-edge-past", "ok", "As old as the window allows.", func(s *scene) { s.now = testNow.Add(gateway().Window) })
	add("ok-edge-future", "ok", "As early as the window allows.",
		func(s *scene) { s.now = testNow.Add(-gateway().Window) })
	add("ok-previous-gate", "ok", "Sealed with the older of two gate keys.", func(s *scene) {
		s.gates = append([]keys.GateKey{testGate(0x41)}, s.gates...)
	})
	add("ok-previous-key", "ok", "Sealed with a previous client key, a nanosecond before its end.", func(s *scene) {
		s.until = testNow.Add(1)
	})
}

func addRefusedBeforeMAC(add addFunc) {
	for _, n := range []int{0, 1, 72, 167, 257} {
		add(fmt.Sprintf("length-%d", n), "length", "Wrong in its length alone.", func(s *scene) {
			s.length = n
			if n < 167 {
				s.length, s.mend = MinLen, func(p []byte) []byte { return p[:n] }
			}
		})
	}
	add("gate-key", "gate", "Sealed with another gate key.", func(s *scene) { s.sender.Gate = testGate(0x41) })
	add("gate-two-keys", "gate", "Sealed with neither of two gate keys.", func(s *scene) {
		s.gates = []keys.GateKey{testGate(0x41), testGate(0x42)}
	})
	addFlip := func(name, verdict, about string, byteAt int) {
		add(name, verdict, about, func(s *scene) {
			s.mend = func(p []byte) []byte { return flip(p, 8*((byteAt+len(p))%len(p))) }
		})
	}
	addFlip("gate-nonce", "gate", "A bit of the nonce flipped.", 0)
	addFlip("gate-sealed-id", "gate", "A bit of the sealed id flipped.", sealedIDAt)
	addFlip("gate-tag", "gate", "A bit of the gate tag flipped.", gateTagAt)
	add("client-unknown", "client", "Of a client that the server does not know.", func(s *scene) { s.sender.ID++ })
	addFlip("mac-body", "mac", "A bit of the body flipped.", bodyAt)
	addFlip("mac-padding", "mac", "A bit of the padding flipped.", -macLen-1)
	addFlip("mac-first", "mac", "A bit in the first byte of the mac flipped.", -macLen)
	addFlip("mac-last", "mac", "A bit in the last byte of the mac flipped.", -1)
	add("mac-key", "mac", "Sealed with another client's key.", func(s *scene) { s.sender.Key = testKey(0x90) })
	add("mac-other-server", "mac", "Sealed for another server with the same keys.",
		func(s *scene) { s.sender.Server[15] ^= 1 })
	add("mac-cut", "mac", "The last byte is missing.",
		func(s *scene) { s.mend = func(p []byte) []byte { return p[:len(p)-1] } })
	add("mac-extended", "mac", "A byte follows.", func(s *scene) {
		s.mend = func(p []byte) []byte {
			return append(p,
				0)
		}
	})
}

func addRefusedAfterMAC(add addFunc) {
	add("revoked-client", "revoked", "The client was revoked an hour ago.",
		func(s *scene) { s.revoked = testNow.Add(-time.Hour) })
	add("retired-previous-key", "retired", "Sealed with a previous client key, at its end.",
		func(s *scene) { s.until = testNow })
	for name, plain := range badRequests() {
		add("malformed-"+name, "malformed", "Well sealed, but the request in it is not well-formed: "+name+".",
			func(s *scene) {
				s.plain = plain[:min(len(plain), requestMax)]
			})
	}
	add("stale-past", "stale", "A nanosecond too old.", func(s *scene) { s.now = testNow.Add(gateway().Window + 1) })
	add("stale-future", "stale", "A nanosecond too early.", func(s *scene) { s.now = testNow.Add(-gateway().Window - 1) })
	add("stale-first-instant", "stale", "The earliest time that there is.",
		func(s *scene) { s.request.Time = time.Unix(0, -1<<63) })
	add("stale-last-instant", "stale", "The latest time that there is.",
		func(s *scene) { s.request.Time = time.Unix(0, 1<<63-1) })
}

func (s scene) text(t *testing.T, name string) string {
	plain := s.plain
	if plain == nil {
		plain = s.request.append(nil)
	}
	fresh := firstRandom(t, name)
	packet := seal(plain, s.sender, s.length)
	if s.mend != nil {
		packet = s.mend(packet)
	}

	l := &lines{}
	l.add("# "+s.about+"\nverdict", s.verdict)
	l.addKeys(s.gates)
	s.addServer(l)
	if s.verdict == "ok" {
		l.addRequest(s.request)
	}
	if name == "ok-open" {
		l.addSubkeys()
	}
	l.add("plaintext", plain)
	l.add("fresh", fresh)
	l.add("packet", packet)
	return l.String()
}

// firstRandom seeds the randomness and returns the first 32 bytes that will be drawn: those for the nonce.
func firstRandom(t *testing.T, name string) []byte {
	seedRandom(t, name)
	fresh := make([]byte, 32)
	rand.Read(fresh)
	seedRandom(t, name)
	return fresh
}

// addKeys writes the server's keys, which are alice's too unless the scene says otherwise.
func (l *lines) addKeys(gates []keys.GateKey) {
	l.add("server id", testServer[:])
	for _, g := range gates {
		l.add("gate key", fromBase64(g.Reveal()))
	}
	l.add("client id", aliceID)
	l.add("client key", fromBase64(testKey(0x80).Reveal()))
}

func fromBase64(s string) []byte {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		panic(err) // cannot happen: we made it
	}
	return b
}

func (s scene) addServer(l *lines) {
	if !s.revoked.IsZero() {
		l.add("revoked", s.revoked.UnixNano())
	}
	if !s.until.IsZero() {
		l.add("until", s.until.UnixNano())
	}
	l.add("window", gateway().Window.Milliseconds())
	l.add("now", s.now.UnixNano())
}

func (l *lines) addRequest(r Request) {
	l.add("request id", r.ID[:])
	l.add("type", r.Type)
	l.add("time", r.Time.UnixNano())
	if !r.First.IsZero() {
		l.add("first", r.First.UnixNano())
	}
	l.add("for", r.For.Milliseconds())
	l.addAddr("source", r.Source)
	if r.LetIn.IsValid() {
		l.add("let in", r.LetIn)
	}
	for _, service := range r.Services {
		l.add("service", service)
	}
}

func (l *lines) addAddr(name string, a netip.Addr) {
	if !a.IsValid() {
		l.add(name, "none")
		return
	}
	l.add(name, a)
}

func (l *lines) addSubkeys() {
	key, gate := testKey(0x80), testGate(0x40)
	l.add("# The keys that HKDF makes of the client key and of the gate key.\nrequest cipher", key.RequestCipher()[:])
	l.add("request mac", key.RequestMAC()[:])
	l.add("receipt cipher", key.ReceiptCipher()[:])
	l.add("receipt mac", key.ReceiptMAC()[:])
	l.add("nonce hedge", key.Hedge()[:])
	l.add("gate mask", joinHalves(gate.Mask()))
	l.add("gate tag", joinHalves(gate.Tag()))
}

func joinHalves(k0, k1 uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, k0), k1)
}
