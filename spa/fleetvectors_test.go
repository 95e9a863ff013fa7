package spa

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/spa/lab"
)

const fleetDir = "testdata/fleet"

var testFleet = keys.FleetID{0xf0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// fleetToken is a token of a fleet: its fields, including values that no profile has.
type fleetToken struct {
	domain   string
	source   string
	server   keys.FleetID
	id       uint64
	gateways []string // name and address each
	count    int      // of gateways, if it is another
	tail     []byte
	prefix   string
	label    string
}

func goodFleet() fleetToken {
	return fleetToken{domain: "example.net", source: "observed", server: testFleet, prefix: "spa2",
		label: "sallyport 1 fleet token", gateways: []string{"db1 198.51.100.7:62202", "web7 "}}
}

// token encodes the fields by sections 3 and 13 of PROTOCOL.md, without checking them.
func (f fleetToken) token() string {
	var b []byte
	text := func(s string) { b = append(append(b, byte(len(s))), s...) }
	for _, s := range []string{"prod", "alice", f.domain, f.source} {
		text(s)
	}
	gate, key := testBytes(0x40), testBytes(0x80)
	b = append(append(append(b, 1, 0xf2, 0xf9), f.server[:]...), gate[:]...)
	b = append(binary.BigEndian.AppendUint64(b, f.id), key[:]...)
	b = append(b, 1, 1)
	text("ssh")
	b = append(b, 1)
	text("tcp/22")
	count := len(f.gateways)
	if f.count != 0 {
		count = f.count
	}
	b = binary.BigEndian.AppendUint16(b, uint16(count))
	for _, g := range f.gateways {
		name, address, _ := strings.Cut(g, " ")
		text(name)
		text(address)
	}
	b = append(b, f.tail...)
	sum := sha256.Sum256(append([]byte(f.label), b...))
	return f.prefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:8]...))
}

func (f fleetToken) profile() *keys.Profile {
	p := &keys.Profile{Name: "prod", Client: "alice", Address: f.domain, Source: f.source, KnockPorts: []uint16{62201},
		Fleet: f.server, Gate: testGate(0x40), Key: testKey(0x80), Receipts: true,
		Services: map[string][]string{"ssh": {"tcp/22"}}, Gateways: map[string]string{}}
	for _, g := range f.gateways {
		name, address, _ := strings.Cut(g, " ")
		p.Gateways[name] = address
	}
	return p
}

func goodFleets() map[string]func(f *fleetToken) {
	return map[string]func(f *fleetToken){
		"token":          func(*fleetToken) {},
		"token-unlisted": func(f *fleetToken) { f.gateways, f.source = nil, "" },
		"token-no-domain": func(f *fleetToken) {
			f.domain, f.gateways = "", []string{"0 192.0.2.1", "db1 [2001:db8::1]:443"}
		},
	}
}

func badFleets() map[string]func(f *fleetToken) {
	domain := func(s string) func(f *fleetToken) { return func(f *fleetToken) { f.domain = s } }
	gateways := func(s ...string) func(f *fleetToken) { return func(f *fleetToken) { f.gateways = s } }
	return map[string]func(f *fleetToken){
		"domain-port": domain("example.net:443"), "domain-address": domain("[2001:db8::1]"), "domain-dot": domain(".net"),
		"domain-label": domain("-a.net"), "domain-none": domain(""),
		"domain-ipv4": domain("192.0.2.1"), "domain-long": domain(strings.Repeat("a.", 124) + "a"),
		"fleet-id-0":  func(f *fleetToken) { f.server = keys.FleetID{} },
		"client-id":   func(f *fleetToken) { f.id = 1 },
		"trailing":    func(f *fleetToken) { f.tail = []byte{0} },
		"count-more":  func(f *fleetToken) { f.count = 3 },
		"count-fewer": func(f *fleetToken) { f.count = 1 },
		"order":       gateways("web7 ", "db1 "), "twice": gateways("web7 ", "web7 "), "name": gateways("Web7 "),
		"name-domain": gateways("web7.example.net "), "address": gateways("web7 192.0.2"),
		"address-port-0": gateways("web7 192.0.2.1:0"),
		"too-many":       gateways(slices.Sorted(maps.Keys(manyGateways(keys.MaxGateways + 1)))...),
		"label":          func(f *fleetToken) { f.label = "sallyport 1 token" },
		"prefix":         func(f *fleetToken) { f.prefix = "spa1" },
		"prefix-upper":   func(f *fleetToken) { f.prefix = "SPA2" },
	}
}

func manyGateways(n int) map[string]bool {
	names := map[string]bool{}
	for i := range n {
		names[fmt.Sprintf("g%04d ", i)] = true
	}
	return names
}

// fleetVectors returns the text of every vector of fleets by its name.
func fleetVectors() map[string]string {
	made := map[string]string{}
	for name, change := range goodFleets() {
		f := goodFleet()
		change(&f)
		l := &lines{}
		l.add("# A fleet's profile and its token.\nverdict", "fleet-token-ok")
		l.addFleet(f.profile())
		l.add("token", f.profile().Token())
		made[name] = l.String()
	}
	for name, change := range badFleets() {
		f := goodFleet()
		change(&f)
		l := &lines{}
		l.add("# That of token.txt with one fault: "+name+".\nverdict", "fleet-token-wrong")
		l.add("token", f.token())
		made["token-wrong-"+name] = l.String()
	}
	for _, name := range []string{"web7", "0", "an-old-name-with-all-32-letters0"} {
		made["gateway-"+name] = gatewayVector(name)
	}
	return made
}

func gatewayVector(name string) string {
	p := goodFleet().profile()
	g, err := p.Gateway(name)
	if err != nil {
		panic(err) // cannot happen: the name is ours
	}
	l := &lines{}
	l.add("# What is derived for one gateway of a fleet.\nverdict", "fleet-gateway")
	l.add("fleet id", p.Fleet[:])
	l.add("fleet gate key", fromBase64(p.Gate.Reveal()))
	l.add("fleet client key", fromBase64(p.Key.Reveal()))
	l.add("domain", p.Address)
	l.add("site", name)
	l.add("address", g.Address)
	l.add("server id", g.ServerID[:])
	l.add("gate key", fromBase64(g.Gate.Reveal()))
	l.add("client id", g.ID)
	l.add("client key", fromBase64(g.Key.Reveal()))
	return l.String()
}

// addFleet writes a gateway as its name and its address.
func (l *lines) addFleet(p *keys.Profile) {
	l.add("name", p.Name)
	l.add("client", p.Client)
	l.add("domain", p.Address)
	l.add("source", p.Source)
	for _, port := range p.KnockPorts {
		l.add("knock port", port)
	}
	l.add("fleet id", p.Fleet[:])
	l.add("fleet gate key", fromBase64(p.Gate.Reveal()))
	l.add("fleet client key", fromBase64(p.Key.Reveal()))
	l.add("receipts", p.Receipts)
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		l.add("service", name+" "+strings.Join(p.Services[name], " "))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Gateways)) {
		l.add("gateway", name+" "+p.Gateways[name])
	}
}

// TestFleetVectorsAreGenerated: the files are those that this version makes.
func TestFleetVectorsAreGenerated(t *testing.T) {
	lab.Vectors(t, fleetDir, fleetVectors())
}

// TestFleetVectors checks tokens with the parser, and derivations by section 13 of PROTOCOL.md.
func TestFleetVectors(t *testing.T) {
	for _, path := range lab.Value(filepath.Glob(filepath.Join(fleetDir, "*.txt")))(t) {
		v := parseVector(t, string(lab.Value(os.ReadFile(path))(t)))
		switch verdict := v.one(t, "verdict"); verdict {
		case "fleet-gateway":
			v.testGateway(t, path)
		case "fleet-token-wrong":
			if _, err := keys.ParseToken(v.one(t, "token")); err == nil {
				t.Errorf("%s is accepted", path)
			}
		case "fleet-token-ok":
			p, err := keys.ParseToken(v.one(t, "token"))
			lab.Must(t, err)
			l := &lines{}
			l.addFleet(p)
			for name, want := range parseVector(t, l.String()) {
				if !slices.Equal(v[name], want) {
					t.Errorf("%s: %s: got %q, want %q", path, name, want, v[name])
				}
			}
		default:
			t.Errorf("%s: unknown verdict %q", path, verdict)
		}
	}
	if got := goodFleet().token(); got != goodFleet().profile().Token() {
		t.Error("without its one fault, a wrong token would not be right")
	}
}

func (v vector) testGateway(t *testing.T, path string) {
	t.Helper()
	server := sha256.Sum256(append(append([]byte("sallyport 1 server"), v.hex(t, "fleet id")...), v.one(t, "site")...))
	if got := hex.EncodeToString(server[:16]); got != v.one(t, "server id") {
		t.Errorf("%s: server id %s", path, got)
	}
	for name, from := range map[string]struct {
		master, label string
		size          int
	}{
		"client key": {"fleet client key", "sallyport 1 gateway", 32},
		"client id":  {"fleet client key", "sallyport 1 client id", 8},
		"gate key":   {"fleet gate key", "sallyport 1 gateway gate", 32},
	} {
		got := lab.Value(hkdf.Key(sha256.New, v.hex(t, from.master), nil, from.label+string(server[:16]), from.size))(t)
		if hex.EncodeToString(got) != v.one(t, name) {
			t.Errorf("%s: %s: got %x", path, name, got)
		}
	}
}

// TestLongestFleetToken checks the figure in PROTOCOL.md, section 13.
func TestLongestFleetToken(t *testing.T) {
	p := testProfile()
	p.Name, p.Client = strings.Repeat("a", 32), strings.Repeat("a", 32)
	p.Address = strings.Repeat("a.", 123) + "aa"
	p.Source, p.KnockPorts = "stun:"+p.Address+"aa", manyNumbers(keys.MaxKnockPorts)
	p.Fleet, p.ServerID, p.ID = testFleet, keys.ServerID{}, 0
	p.Services, p.Gateways = map[string][]string{}, map[string]string{}
	for i := range keys.MaxServices {
		name := fmt.Sprintf("%032d", i)
		for j := range keys.MaxServicePorts {
			p.Services[name] = append(p.Services[name], fmt.Sprintf("tcp/%d-%d", 10000+j, 20000))
		}
	}
	for i := range keys.MaxGateways {
		p.Gateways[fmt.Sprintf("%032d", i)] = strings.Repeat("a.", 124) + "aa"
	}
	if n := len(p.Token()); n != 560_218 {
		t.Errorf("the longest token has %d characters", n)
	}
}
