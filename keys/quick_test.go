package keys

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
	"sallyport/spa/lab"
)

// FuzzQuick: what the quick parser accepts is what the strict one reads.
func FuzzQuick(f *testing.F) {
	plain := client("alice", 7)
	plain.Allow = []string{"ssh", "tcp/8443", "udp/60000-60010"}
	text := string(plain.text())
	f.Add([]byte(text))
	f.Add(fullClient().text())
	for _, change := range [][2]string{
		{clientHeader, ""}, {clientHeader, clientHeader + clientHeader}, {"\n", "\r\n"}, {"version = 1\n", "version = 2\n"},
		{`"ssh", `, `"ssh",`}, {`"ssh"`, `"ssh", "ssh"`}, {`"ssh"`, `"s\u0073h"`}, {`"ssh"`, `"tcp/0"`}, {`"ssh", `, `"`},
		{`id = "`, `id = "0`}, {`id = "0`, `id = "A`}, {`key = "`, `key = " `}, {`="`, `"`}, {"]\n", "]\n\n"},
		{"]\n", "]"}, {"]\n", "]\nrevoked = 2026-01-01T00:00:00Z\n"}, {"\nallow", "\n# from = []\nallow"},
		{`"0000000000000007"`, `"0000000000000000"`},
	} {
		f.Add([]byte(strings.Replace(text, change[0], change[1], 1)))
	}
	q := newQuick(nil)
	f.Fuzz(func(t *testing.T, text []byte) {
		got := q.parse("alice", text).whole()
		if got == nil {
			return
		}
		want, err := clientOf("alice.toml", "alice", text)
		if err != nil || !sameClient(got, want) || !bytes.Equal(got.text(), want.text()) {
			t.Errorf("got %+v, want %+v (%v)", got, want, err)
		}
	})
}

// TestQuickReads: the quick parser reads what spa-keygen new writes, and leaves files that say more to the strict one.
func TestQuickReads(t *testing.T) {
	q := newQuick(nil)
	plain := client("alice", 7)
	for range 2 { // the second time it knows the list of services
		if got := q.parse("alice", plain.text()).whole(); got == nil || !sameClient(got, plain) {
			t.Fatalf("got %+v, want %+v", got, plain)
		}
	}
	for name, change := range map[string]func(c *Client){
		"previous":       func(c *Client) { c.Previous = &Previous{ID: 8, Key: NewKey(), Until: time.Unix(9, 0)} },
		"from":           func(c *Client) { c.From = fullClient().From },
		"deny":           func(c *Client) { c.Deny = fullClient().Deny },
		"expires":        func(c *Client) { c.Expires = time.Unix(9, 0) },
		"revoked":        func(c *Client) { c.Revoked = time.Unix(9, 0) },
		"max_for":        func(c *Client) { c.MaxFor = time.Hour },
		"require_source": func(c *Client) { c.RequireSource = true },
		"when":           func(c *Client) { c.When = lab.Value(service.ParseSpans([]string{"mon 08:00-18:00"}))(t) },
		"recovery":       func(c *Client) { c.Recovery = 3 },
	} {
		c := *plain
		change(&c)
		if got := q.parse("alice", c.text()); got != nil {
			t.Errorf("%s: the file was read without it", name)
		}
	}
}

// TestQuickAndStrict: a directory with files of both kinds is read as the strict parser alone reads it.
func TestQuickAndStrict(t *testing.T) {
	dir := t.TempDir()
	full := fullClient()
	full.Name = "full"
	for _, c := range []*Client{client("alice", 1), client("bob", 2), full} {
		put(t, dir, c)
	}
	for _, got := range load(t, dir).Clients() {
		want := lab.Value(readClient(place.Folder{Path: dir}, got.Name+Suffix, strict.Schema{}))(t)
		if !sameClient(got, want) {
			t.Errorf("%s: got %+v, want %+v", filepath.Join(dir, got.Name), got, want)
		}
	}
}
