package keys

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestTerms: terms say what a client file says, and print and parse alike.
func TestTerms(t *testing.T) {
	const rest = "from = [\"203.0.113.0/24\"]\ndeny = [\"203.0.113.66/32\"]\nwidest4 = 24\nwidest6 = 56\n" +
		"delegate = [\"198.51.100.0/24\"]\nexpires = 2030-01-01T00:00:00Z\nmax_for = \"1h\"\nrequire_source = true\n" +
		"when = [\"mon-fri 08:00-18:00\"]\n"
	text := "version = 1\nallow = [\"ssh\", \"tcp/8443\"]\ngateways = [\"db1\", \"web\"]\n" + rest
	terms := lab.Value(ParseTerms("alice.toml", "alice", []byte(text)))(t)
	if got := string(terms.Text()); got != text {
		t.Errorf("got\n%s", got)
	}
	k := &FleetKey{Client: "alice", Key: NewKey()}
	k.Rotate(time.Unix(1.9e9, 0).UTC())
	server := NewFleetID().Server("web")
	c := terms.At(server, k)
	if !strings.HasSuffix(string(c.Text()), "previous = "+c.Previous.text()+"\n") ||
		!strings.Contains(string(c.Text()), rest) {
		t.Errorf("at a gateway the client is\n%s", c.Text())
	}
	parsed := lab.Value(ClientParser()("alice", c.Text()))(t)
	parsed.Fleet = true
	if !parsed.Same(c) || c.ID != k.Key.IDAt(server) || !c.Previous.Key.Equal(k.Previous.At(server)) {
		t.Error("at a gateway the client is another")
	}
}

func TestTermsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"version = 1\n": "allow: missing",
		"version = 1\nallow = [\"ssh\"]\nkey = \"x\"\n":             "key: unknown key",
		"version = 1\nallow = [\"ssh\"]\nrecovery = 3\n":            "recovery: unknown key",
		"version = 1\nallow = [\"ssh\"]\ngateways = []\n":           "gateways: is empty",
		"version = 1\nallow = [\"a\"]\ngateways = [\"A\"]\n":        "gateways: entry 1",
		"version = 1\nallow = [\"a\"]\ngateways = [\"a\", \"a\"]\n": "gateways: entry 2 is listed twice",
		"version = 1\nallow = [\"no service!\"]\n":                  "allow: entry 1",
		"version = 1\nallow = [\"a\"]\nmax_for = \"long\"\n":        "max_for",
	} {
		if _, err := ParseTerms("alice.toml", "alice", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

// TestSetTerms: what people wrote stays, and a mistake changes nothing.
func TestSetTerms(t *testing.T) {
	text := []byte("# the build host\nversion = 1\nallow = [\"ssh\"] # not web\n")
	after, changed, err := SetTerms("a.toml", "a", text, []string{"max_for=1h", "gateways=web7,db1", "allow=ssh"})
	lab.Must(t, err)
	want := "# the build host\nversion = 1\nallow = [\"ssh\"] # not web\n" +
		"gateways = [\"web7\", \"db1\"]\nmax_for = \"1h\"\n"
	if strings.Join(changed, ",") != "max_for,gateways" || len(after) != len(want) || !bytes.HasPrefix(after, text) {
		t.Errorf("%v: got\n%s", changed, after)
	}
	for _, bad := range []string{"max_for=long", "key=x", "gateways=[]", "allow="} {
		if _, _, err := SetTerms("a.toml", "a", text, []string{"max_for=1h", bad}); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestFleetKey(t *testing.T) {
	k := &FleetKey{Client: "alice", Key: NewKey()}
	for range 2 {
		text := k.Text()
		got := lab.Value(ParseFleetKey("alice.age", text))(t)
		if !bytes.Equal(got.Text(), text) {
			t.Error("a key does not parse as it prints")
		}
		for n := range len(text) - 1 {
			if _, err := ParseFleetKey("alice.age", text[:n]); err == nil && text[n-1] != '\n' && text[n] != '\n' {
				t.Errorf("accepts a key that is cut off after %d bytes", n)
			} else if err != nil && strings.Contains(err.Error(), k.Key.Reveal()) {
				t.Errorf("an error quotes the key: %v", err)
			}
		}
		k.Rotate(time.Unix(1.9e9, 0).UTC())
	}
	k.Previous = k.Key
	if _, err := ParseFleetKey("alice.age", k.Text()); err == nil {
		t.Error("accepts the current key as the previous one")
	}
}
