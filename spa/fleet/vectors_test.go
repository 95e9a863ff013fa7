package fleet

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
)

const vectorDir = "testdata/vectors"

var verdicts = map[string]error{"ok": nil, "format": ErrFormat, "signature": ErrSignature, "fleet": ErrFleet,
	"recipient": ErrRecipient, "sealed": ErrSealed, "contents": ErrContents}

// A scene is what one vector is made of: the office of a fleet seals the bundle of its gateway web7.
type scene struct {
	fleet    keys.FleetID // that the gateway expects
	key      ed25519.PublicKey
	gateway  string // that it is
	identity *age.HybridIdentity
	contents *Contents
	bundle   []byte
	taken    string // what the gateway says when it has taken the bundle over
}

// seeded makes all randomness until the test's end depend on the name alone.
func seeded(t *testing.T, name string) {
	sum := sha256.Sum256([]byte(name))
	cryptotest.SetGlobalRandom(t, binary.BigEndian.Uint64(sum[:8]))
}

// vectorContents are the contents of all vectors: two clients, with the keys of gateway-web7.txt.
func vectorContents() *Contents {
	var master [keys.Size]byte
	bytesFrom := func(first byte) [keys.Size]byte {
		for i := range master {
			master[i] = first + byte(i)
		}
		return master
	}
	server := vectorFleet.Server("web7")
	gates := keys.Gates{Current: keys.GateKeyFromBytes(bytesFrom(0x40))}
	c := &Contents{Site: "web7", Gates: gates.At(server)}
	for i, name := range []string{"alice", "bob"} {
		k := keys.KeyFromBytes(bytesFrom(0x80 + byte(32*i)))
		c.Clients = append(c.Clients, &keys.Client{Name: name, ID: k.IDAt(server), Key: k.At(server), Allow: []string{"ssh"}})
	}
	return c
}

var vectorFleet = keys.FleetID{0xf0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// sealed makes a scene without a fault.
func sealed(t *testing.T, name string, c *Contents) scene {
	t.Helper()
	seeded(t, name)
	public, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	identity := lab.Value(age.GenerateHybridIdentity())(t)
	b, err := Seal{vectorFleet, private}.Seal("web7", identity.Recipient(), 42, time.Date(2026, 11, 30, 9, 0, 0, 0,
		time.UTC), c)
	lab.Must(t, err)
	s := scene{vectorFleet, public, "web7", identity, c, b.Bytes(), ""}
	if opened, err := Open(b, identity); err == nil {
		s.taken = opened.Taken.Sign(b.Head, time.Date(2026, 11, 30, 9, 1, 0, 0, time.UTC)).String()
	}
	return s
}

// makeVectors returns the text of every vector by its name.
func makeVectors(t *testing.T) map[string]string {
	made := map[string]string{}
	add := func(name, verdict, about string, change func(s *scene)) {
		t.Run(name, func(t *testing.T) {
			s := sealed(t, "fleet", vectorContents())
			change(&s)
			made[name] = s.text(verdict, about)
		})
	}
	text := func(from, to string) func(*scene) {
		return func(s *scene) { s.bundle = []byte(strings.Replace(string(s.bundle), from, to, 1)) }
	}
	add("bundle", "ok", "A bundle with two clients.", func(*scene) {})
	add("bundle-share", "ok", "A bundle for a gateway that shares its address.", func(s *scene) {
		c, seed := vectorContents(), [32]byte{1}
		c.Share = share.DeriveKey(seed[:], vectorFleet.Server(c.Site))
		*s = sealed(t, "fleet", c)
	})
	add("format-cut", "format", "Cut by a byte.", func(s *scene) { s.bundle = s.bundle[:len(s.bundle)-1] })
	add("format-longer", "format", "A byte too long.", func(s *scene) { s.bundle = append(s.bundle, 0) })
	add("format-changed", "format", "A bit of the last byte flipped.", func(s *scene) { s.bundle[len(s.bundle)-1] ^= 1 })
	add("format-version", "format", "Another version.", text("bundle 1\n", "bundle 2\n"))
	add("format-serial", "format", "A leading zero.", text("serial 42", "serial 042"))
	add("format-serial-0", "format", "Serial 0.", text("serial 42", "serial 0"))
	add("format-issued", "format", "A time with another zone.", text("09:00:00Z", "09:00:00+00:00"))
	add("format-line-ends", "format", "CR before LF.", text("serial 42\n", "serial 42\r\n"))
	add("signature-serial", "signature", "Another serial.", text("serial 42", "serial 43"))
	add("signature-issued", "signature", "Another time.", text("09:00:00Z", "09:00:01Z"))
	add("signature-office", "signature", "Signed by another office.", func(s *scene) {
		s.key = sealed(t, "another office", vectorContents()).key
	})
	add("fleet-other", "fleet", "The gateway is of another fleet.", func(s *scene) { s.fleet[15]++ })
	add("recipient-other", "recipient", "The gateway has another name.", func(s *scene) { s.gateway = "web8" })
	add("sealed-other", "sealed", "Sealed to another identity.", func(s *scene) {
		s.identity = sealed(t, "another gateway", vectorContents()).identity
	})
	for name, change := range map[string]func(*Contents){
		"site":     func(c *Contents) { c.Site = "Web7" },
		"twice":    func(c *Contents) { c.Clients[1].Name = "alice" },
		"name":     func(c *Contents) { c.Clients[0].Name = "../alice" },
		"recovery": func(c *Contents) { c.Clients[0].Recovery = 3 },
	} {
		add("contents-"+name, "contents", "Well signed and sealed, but with one fault: "+name+".", func(s *scene) {
			c := vectorContents()
			change(c)
			*s = sealed(t, "fleet", c)
		})
	}
	return made
}

func (s scene) text(verdict, about string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\nverdict: bundle-%s\n", about, verdict)
	fmt.Fprintf(&b, "fleet id: %s\noffice key: %x\ngateway: %s\nidentity: %s\n", s.fleet, []byte(s.key), s.gateway,
		s.identity)
	if verdict == "ok" {
		fmt.Fprintf(&b, "serial: 42\nissued: 1796029200\ncontents: %x\ntaken: %s\n", s.contents.text(), s.taken)
	}
	fmt.Fprintf(&b, "bundle: %x\n", s.bundle)
	return b.String()
}

// TestVectorsAreGenerated: the files are those that this version makes.
func TestVectorsAreGenerated(t *testing.T) {
	lab.Vectors(t, vectorDir, makeVectors(t))
}

// TestVectors: a gateway takes over the bundle whose verdict is ok, and refuses the others for the named reason.
func TestVectors(t *testing.T) {
	for _, path := range lab.Value(filepath.Glob(filepath.Join(vectorDir, "*.txt")))(t) {
		v := map[string]string{}
		for line := range strings.Lines(string(lab.Value(os.ReadFile(path))(t))) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			v[name] = value
		}
		unhex := func(name string) []byte { return lab.Value(hex.DecodeString(v[name]))(t) }
		want, known := verdicts[strings.TrimPrefix(v["verdict"], "bundle-")]
		office := Office{lab.Value(keys.ParseFleetID(v["fleet id"]))(t), unhex("office key")}
		identity := lab.Value(age.ParseHybridIdentity(v["identity"]))(t)
		c, err := takeOver(unhex("bundle"), office, v["gateway"], identity)
		if !known || !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", path, err, want)
		}
		if err == nil && !bytes.Equal(c.text(), unhex("contents")) {
			t.Errorf("%s: got contents %q", path, c.text())
		}
		if err == nil {
			said := lab.Value(ParseTaken([]byte(v["taken"])))(t)
			if again := c.Taken.Sign(lab.Value(Parse(unhex("bundle")))(t).Head, said.Since); again.String() != v["taken"] {
				t.Errorf("%s: the gateway says %s", path, again)
			}
		}
	}
}

// takeOver is what a gateway does with a bundle that arrives.
func takeOver(text []byte, office Office, gateway string, identity *age.HybridIdentity) (*Contents, error) {
	b, err := Parse(text)
	if err != nil {
		return nil, err
	}
	if err := office.Verify(b, gateway); err != nil {
		return nil, err
	}
	return Open(b, identity)
}
