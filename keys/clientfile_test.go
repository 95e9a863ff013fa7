package keys

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
	"sallyport/spa/lab"
)

func fullClient() *Client {
	return &Client{
		Name: "alice", ID: 0xab, Key: NewKey(), Previous: &Previous{ID: 0xcd, Key: NewKey(),
			Until: time.Date(2027, 1, 2, 3, 4, 5, 600, time.UTC)},
		Allow: []string{"ssh", "tcp/8443", "udp/60000-60010"},
		From:  []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::1/128")},
		Deny:  []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32")}, Expires: time.Date(2028, 1, 1, 0, 0, 0, 0, time.UTC),
		When: []service.Span{{First: time.Monday, Last: time.Friday, From: 480, To: 1080},
			{First: time.Friday, Last: time.Friday, From: 1320, To: 120}},
		MaxFor: 90 * time.Minute, RequireSource: true, Revoked: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC),
		Recovery: 3,
	}
}

// sameClient compares clients, and their keys with Equal, because == and DeepEqual cannot compare keys.
func sameClient(a, b *Client) bool {
	x, y := *a, *b
	same := x.Key.Equal(y.Key) && (x.Previous == nil) == (y.Previous == nil)
	if same && x.Previous != nil {
		same = x.Previous.Key.Equal(y.Previous.Key) && x.Previous.ID == y.Previous.ID &&
			x.Previous.Until.Equal(y.Previous.Until)
	}
	x.Key, y.Key, x.Previous, y.Previous = Key{}, Key{}, nil, nil
	return same && reflect.DeepEqual(x, y)
}

func TestClientFile(t *testing.T) {
	for name, c := range map[string]*Client{
		"full":    fullClient(),
		"least":   {Name: "alice", ID: 1, Key: NewKey(), Allow: []string{"ssh"}},
		"nothing": {Name: "alice", ID: 1, Key: NewKey(), Allow: []string{}},
	} {
		dir := t.TempDir()
		if err := WriteClient(dir, c, true); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		path := filepath.Join(dir, "alice.toml")
		back, err := ReadClient(path)
		if err != nil || !sameClient(back, c) {
			t.Fatalf("%s: got %+v, %v, want %+v", name, back, err, c)
		}
		before, _ := os.ReadFile(path)
		lab.Must(t, WriteClient(dir, back, false))
		if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
			t.Errorf("%s: written back as\n%s", name, after)
		}
		if err := WriteClient(dir, c, true); !errors.Is(err, place.ErrExists) {
			t.Errorf("%s: got %v, want ErrExists", name, err)
		}
	}
}

func TestReplacingNeedsAFile(t *testing.T) {
	dir := t.TempDir()
	if err := WriteClient(dir, fullClient(), false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want that there is no such file", err)
	}
}

const clientText = "version = 1\nid = \"00000000000000ab\"\nkey = " +
	"\"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\"\nallow = [\"ssh\"]\n"

func readClientText(t *testing.T, text string) (*Client, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "alice.toml")
	lab.Must(t, os.WriteFile(path, []byte(text), 0o600))
	c, err := ReadClient(path)
	if err != nil && !strings.Contains(err.Error(), path) {
		t.Errorf("%v does not name the file", err)
	}
	return c, err
}

func TestReadClientRefuses(t *testing.T) {
	const key, line = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", ":5: "
	previous := `previous = { id = "00000000000000cd", key = "` + key + `", until = 2027-01-01T00:00:00Z }`
	_, err := readClientText(t, clientText+previous)
	lab.Must(t, err)
	for add, want := range map[string]string{
		`from = []`: line + "from: is empty",
		`from = ["203.0.113.7/24"]`: line +
			"from: entry 1: 203.0.113.7/24 has bits outside its mask: write 203.0.113.0/24",
		`deny = ["203.0.113.7", "x"]`: line + "deny: entry 2: a network is written",
		`when = []`: line +
			`when: should be 1 to 32 spans: ["mon-fri 08:00-18:00"]; leave the line out for any time`,
		`when = "mon 08:00-09:00"`:               line + "when: should be a list",
		`when = ["mon 08:00-09:00", "8-18"]`:     line + `when: entry 2: days and hours are written "mon-fri 08:00-18:00"`,
		`max_for = ""`:                           line + "max_for: a duration is written",
		`max_for = "2000h"`:                      line + "max_for: a duration is 1s to 1000h",
		`expires = 0001-01-01T00:00:00Z`:         line + "expires: is not a date",
		`revoked = 0001-01-01T00:00:00Z`:         line + "revoked: is not a date",
		`revoked = true`:                         line + "revoked: should be a date",
		`requires_source = true`:                 line + `requires_source: unknown key (did you mean "require_source"?)`,
		`previous = {}`:                          line + "previous.id: missing",
		strings.Replace(previous, "cd", "ab", 1): line + "previous.id: is the id of the current key",
		strings.Replace(previous, "cd", "c", 1):  line + "previous.id: a client id is 16 hex digits, this has 15",
		strings.Replace(previous, "MDEy", "", 1): line +
			"previous.key: a key is 32 bytes in base64, 44 characters; this has 40",
		strings.Replace(previous, "2027", "0001", 1):                  line + "previous.until: is not a date",
		`previous = { id = "00000000000000cd", key = "` + key + `" }`: line + "previous.until: missing",
	} {
		if c, err := readClientText(t, clientText+add); err == nil || c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", add, err, want)
		}
	}
	for change, want := range map[[2]string]string{
		{`["ssh"]`, `["SSH"]`}:                   ":4: allow: entry 1 is not a service or port",
		{`["ssh"]`, `["ssh", "tcp/0"]`}:          ":4: allow: entry 2 is not a service or port",
		{`["ssh"]`, `["ssh", "ssh"]`}:            ":4: allow: entry 2 is listed twice",
		{`allow = ["ssh"]`, ``}:                  ": allow: missing",
		{`id = "00000000000000ab"`, ``}:          ": id: missing",
		{`key = "` + key + `"`, ``}:              ": key: missing",
		{`id = "00000000000000ab"`, `id = ""`}:   ":2: id: a client id is 16 hex digits, this has 0",
		{"00000000000000ab", "0000000000000000"}: ":2: id: a client id must not be zero",
		{key, ""}:                                ":3: key: a key is 32 bytes in base64, 44 characters; this has 0",
		{"MDEy", "MDE"}:                          ":3: key: a key is 32 bytes in base64, 44 characters; this has 43",
		{"version = 1", "version = 3"}:           ":1: version: this program reads version 1",
	} {
		c, err := readClientText(t, strings.Replace(clientText, change[0], change[1], 1))
		if err == nil || c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %s", change, err, want)
		}
	}
}

func TestSeveralProblemsAtOnce(t *testing.T) {
	_, err := readClientText(t, "version = 1\nid = \"x\"\nkey = \"y\"\nallow = [\"Z\"]\nmax_for = \"1\"\n")
	for _, want := range []string{":2: id", ":3: key", ":4: allow", ":5: max_for"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want also %s", err, want)
		}
	}
}

func TestClientFileNames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"Alice.toml", "alice", ".toml", "a_b.toml", "alice.toml.toml", "alice.TOML"} {
		path := filepath.Join(dir, name)
		lab.Must(t, os.WriteFile(path, []byte(clientText), 0o600))
		if _, err := ReadClient(path); err == nil || !strings.Contains(err.Error(), "NAME.toml") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestWriteClientRefuses: WriteClient refuses clients that a file cannot express, or that would not read back the same.
func TestWriteClientRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, change := range map[string]func(*Client){
		"no name":         func(c *Client) { c.Name = "" },
		"out of the way":  func(c *Client) { c.Name = "../alice" },
		"no id":           func(c *Client) { c.ID = 0 },
		"no key":          func(c *Client) { c.Key = Key{} },
		"odd service":     func(c *Client) { c.Allow = []string{"a\x00b"} },
		"injected":        func(c *Client) { c.Allow = []string{"ssh\"]\nfrom = [\"0.0.0.0/0"} },
		"twice":           func(c *Client) { c.Allow = []string{"a", "a"} },
		"invalid prefix":  func(c *Client) { c.From = []netip.Prefix{{}} },
		"unmasked prefix": func(c *Client) { c.Deny = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")} },
		"negative":        func(c *Client) { c.MaxFor = -time.Second },
		"too long":        func(c *Client) { c.MaxFor = service.MaxDuration + time.Second },
		"year 10000":      func(c *Client) { c.Expires = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"previous no key": func(c *Client) { c.Previous.Key = Key{} },
		"previous no end": func(c *Client) { c.Previous.Until = time.Time{} },
		"previous id":     func(c *Client) { c.Previous.ID = c.ID },
	} {
		c := fullClient()
		change(c)
		if err := WriteClient(dir, c, true); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(dir), "alice.toml")); err == nil {
		t.Error("written outside of the directory")
	}
}

func TestValidAllow(t *testing.T) {
	for _, good := range []string{"ssh", "tcp/22", "udp/65535", "tcp/60000-60010", "tcp"} {
		if err := validAllow(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "tcp/", "tcp/0", "tcp/022", "tcp/+22", "tcp/65536", "icmp/1", "TCP/22", "tcp/22-",
		"tcp/22-22", "tcp/22-21", "tcp/22-0", "/22", "tcp/22/23", "tcp/2 2", "SSH"} {
		if validAllow(bad) == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}

// TestErrorsDoNotEcho: no error contains a secret, wherever in a file someone put it.
func TestErrorsDoNotEcho(t *testing.T) {
	const secret = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"
	for _, text := range []string{
		secret, secret + "=", secret + " = 1", "key = " + secret, "key = " + secret + "=", `"` + secret + `" = 1`,
		"key = '" + secret, "key = [" + secret + "]",
		"[" + secret + "]", "[[" + secret + "]]", "key = 12" + secret, "key = 0x" + secret, "a." + secret + ".b = 1",
		`key = "\` + secret + `"`,
		"key = \"" + secret + "\"", "id = \"" + secret + "\"", "version = \"" + secret + "\"", "allow = [\"" + secret + "\"]",
		"from = [\"" + secret + "\"]",
		"max_for = \"" + secret + "\"", "previous = { " + secret + " = 1 }", "expires = " + secret,
		"previous = { key = \"" + secret + "\" }", "x = 'a'\nx = '" + secret + "'",
		"# \xff" + secret,
	} {
		for _, before := range []string{"", "version = 1\n", "version = 1\nid = '00000000000000ab'\nallow = []\nkey = '" +
			NewKey().Reveal() + "'\n"} {
			var raw rawClient
			d, err := strict.Decode("f", []byte(before+text+"\n"), &raw)
			if err == nil {
				_, err = raw.client(d, "alice")
			}
			if err == nil {
				continue
			}
			for i := 0; i+6 <= len(secret); i++ {
				if strings.Contains(err.Error(), secret[i:i+6]) {
					t.Fatalf("%q: %v", text, err)
				}
			}
		}
	}
}
