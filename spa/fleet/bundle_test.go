package fleet

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
)

// house is an office and one of its gateways.
type house struct {
	seal   Seal
	office Office
	web    *age.HybridIdentity
}

func newHouse(t testing.TB) house {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	id := keys.NewFleetID()
	return house{Seal{id, private}, Office{id, public}, lab.Value(age.GenerateHybridIdentity())(t)}
}

func contents(clients int) *Contents {
	c := &Contents{Site: "web", Gates: keys.Gates{Current: keys.NewGateKey()}}
	for i := range clients {
		c.Clients = append(c.Clients, &keys.Client{Name: fmt.Sprintf("client-%06d", i), ID: keys.NewID(),
			Key: keys.NewKey(), Allow: []string{"ssh"}})
	}
	return c
}

// bundle returns a bundle with this serial as its office stores it.
func (h house) bundle(t testing.TB, serial int64, c *Contents) []byte {
	t.Helper()
	return lab.Value(h.seal.Seal("web7", h.web.Recipient(), serial, time.Unix(1.9e9, 0), c))(t).Bytes()
}

// take is what a gateway does with what it finds.
func (h house) take(text []byte) (*Contents, error) {
	b, err := Parse(text)
	if err != nil {
		return nil, err
	}
	if err := h.office.Verify(b, "web7"); err != nil {
		return nil, err
	}
	return Open(b, h.web)
}

func TestBundle(t *testing.T) {
	h, sent := newHouse(t), contents(3)
	sent.Clients[1].MaxFor, sent.Clients[1].RequireSource = time.Hour, true
	sent.Clients[2].Previous = &keys.Previous{ID: keys.NewID(), Key: keys.NewKey(), Until: time.Unix(2e9, 0).UTC()}
	got, err := h.take(h.bundle(t, 7, sent))
	lab.Must(t, err)
	if got.Site != "web" || !got.Gates.Current.Equal(sent.Gates.Current) || len(got.Clients) != 3 {
		t.Fatal("a bundle does not hold what was sealed")
	}
	for i, c := range got.Clients {
		if !c.Fleet {
			t.Errorf("%s is not marked as the fleet's", c.Name)
		}
		c.Fleet = false
		if !c.Same(sent.Clients[i]) {
			t.Errorf("client %s differs", c.Name)
		}
	}
}

// TestBundleShare: a gateway that shares its address gets the key for that, and no other contents have its entry.
func TestBundleShare(t *testing.T) {
	h, sent := newHouse(t), contents(2)
	sent.Share = share.DeriveKey([]byte("a secret"), keys.NewServerID())
	got, err := h.take(h.bundle(t, 7, sent))
	if err != nil || !got.Share.Equal(sent.Share) || len(got.Clients) != 2 {
		t.Fatalf("a bundle does not hold what was sealed: %v", err)
	}
	whole, line := string(sent.text()), "share.key 45\n"+sent.Share.Reveal()+"\n"
	if bytes.Contains(contents(2).text(), []byte("share.key")) || strings.Count(whole, line) != 1 {
		t.Errorf("the entry is not %q, and only where there is a key", line)
	}
	for _, other := range []string{line + line, "share.key 44\n" + sent.Share.Reveal(), "share.key 0\n",
		"share.key 44\n" + sent.Share.Reveal()[1:] + "\n"} {
		if _, err := parseContents([]byte(strings.Replace(whole, line, other, 1))); err == nil {
			t.Errorf("accepts %q", other)
		}
	}
	if _, err := parseContents([]byte(strings.Replace(whole, line, "", 1) + line)); err == nil {
		t.Error("accepts the key after the clients")
	}
}

// TestBundleChanged changes, cuts and lengthens a bundle at every byte. None is accepted.
func TestBundleChanged(t *testing.T) {
	h := newHouse(t)
	text := h.bundle(t, 7, contents(1))
	for i := range text {
		changed := bytes.Clone(text)
		changed[i] ^= 1
		for what, text := range map[string][]byte{
			"changed": changed, "cut": text[:i],
			"longer": append(bytes.Clone(text[:i]), append([]byte{text[i]}, text[i:]...)...),
		} {
			if _, err := h.take(text); err == nil {
				t.Errorf("accepts a bundle that is %s at byte %d", what, i)
			}
		}
	}
	if _, err := h.take(append(bytes.Clone(text), 0)); !errors.Is(err, ErrFormat) {
		t.Errorf("a byte too long: %v", err)
	}
}

func TestBundleOfOthers(t *testing.T) {
	h, other := newHouse(t), newHouse(t)
	text := h.bundle(t, 7, contents(1))
	parsed := lab.Value(Parse(text))(t)
	for want, verify := range map[error]func() error{
		ErrSignature: func() error { return Office{h.office.Fleet, other.office.Key}.Verify(parsed, "web7") },
		ErrFleet:     func() error { return Office{other.office.Fleet, h.office.Key}.Verify(parsed, "web7") },
		ErrRecipient: func() error { return h.office.Verify(parsed, "web8") },
		ErrSealed:    func() error { _, err := Open(parsed, other.web); return err },
	} {
		if err := verify(); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	if err := (Office{Fleet: h.office.Fleet}).Verify(parsed, "web7"); !errors.Is(err, ErrSignature) {
		t.Errorf("an office without a key: %v", err)
	}
}

// TestBundleContents seals contents that an office must not make.
func TestBundleContents(t *testing.T) {
	h := newHouse(t)
	for name, change := range map[string]func(*Contents){
		"no site":         func(c *Contents) { c.Site = "" },
		"no gate key":     func(c *Contents) { c.Gates = keys.Gates{} },
		"a name twice":    func(c *Contents) { c.Clients[1].Name = c.Clients[0].Name },
		"a name outside":  func(c *Contents) { c.Clients[0].Name = "../alice" },
		"no key":          func(c *Contents) { c.Clients[0].Key = keys.Key{} },
		"a recovery key":  func(c *Contents) { c.Clients[0].Recovery = 3 },
		"nothing allowed": func(c *Contents) { c.Clients[0].Allow = []string{"no service!"} },
	} {
		c := contents(2)
		change(c)
		if _, err := h.take(h.bundle(t, 1, c)); !errors.Is(err, ErrContents) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "site 3\nwe", "site 03\nweb", "site 3\nweb", "site 3\nwebgate.key 0\n",
		"site 9999999999\n"} {
		if _, err := parseContents([]byte(text)); err == nil {
			t.Errorf("accepts contents %q", text)
		}
	}
	whole := string(contents(2).text())
	if _, err := parseContents([]byte(whole)); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"site 3\n": "sites 3\n", "site 3": "site 03", "gate.key ": "gate.kex ",
		"clients/client-000000": "client-000000", "client-000001.toml": "client-000001",
		"client-000000": "client-000002", "key": "run 0\nkey"} {
		if _, err := parseContents([]byte(strings.Replace(whole, from, to, 1))); err == nil {
			t.Errorf("accepts %q instead of %q", to, from)
		}
	}
	for _, tail := range []string{"run 0\n", "clients/x.toml 9\nversion"} {
		if _, err := parseContents([]byte(whole + tail)); err == nil {
			t.Errorf("accepts %q at the end", tail)
		}
	}
}

// TestBundleParts: a size that is not that of the sealed part, and a signature of another length, are refused before
// anyone verifies them.
func TestBundleParts(t *testing.T) {
	h := newHouse(t)
	for name, change := range map[string]func(*Bundle){
		"another size":      func(b *Bundle) { b.Size++ },
		"a short signature": func(b *Bundle) { b.signature = b.signature[1:] },
	} {
		b := lab.Value(Parse(h.bundle(t, 7, contents(1))))(t)
		change(b)
		if _, err := Parse(b.Bytes()); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSealRefuses: an office makes no bundle that no gateway could take.
func TestSealRefuses(t *testing.T) {
	h := newHouse(t)
	large := contents(0)
	large.Site = strings.Repeat("a", MaxBundle)
	for name, seal := range map[string]func() (*Bundle, error){
		"a bad name": func() (*Bundle, error) {
			return h.seal.Seal("Web 7", h.web.Recipient(), 1, time.Now(), contents(0))
		},
		"serial 0": func() (*Bundle, error) { return h.seal.Seal("web7", h.web.Recipient(), 0, time.Now(), contents(0)) },
		"too long": func() (*Bundle, error) { return h.seal.Seal("web7", h.web.Recipient(), 1, time.Now(), large) },
	} {
		if _, err := seal(); err == nil {
			t.Errorf("%s: it is sealed", name)
		}
	}
}

// TestParseOfficeKey: an office's key has one form.
func TestParseOfficeKey(t *testing.T) {
	h := newHouse(t)
	good := base64.StdEncoding.EncodeToString(h.office.Key)
	if got, err := ParseOfficeKey(good); err != nil || !h.office.Key.Equal(got) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"", good[1:], good + "\n", good[:10] + "\n" + good[10:], "AAAA" + good, good[:40]} {
		if _, err := ParseOfficeKey(text); err == nil {
			t.Errorf("accepts %q", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	h := newHouse(f)
	f.Add(h.bundle(f, 1, contents(1)))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := Parse(text)
		if err == nil && !bytes.Equal(b.Bytes(), text) {
			t.Error("a bundle has two forms")
		}
	})
}

// BenchmarkOpen verifies and opens the bundle of a gateway with 10,000 clients.
func BenchmarkOpen(b *testing.B) {
	h := newHouse(b)
	text := h.bundle(b, 1, contents(10_000))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.take(text); err != nil {
			b.Fatal(err)
		}
	}
}
