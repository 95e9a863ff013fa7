package keys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/spa/lab"
)

const handwritten = `# The laptop of Alice, asset 4711.
allow = ["ssh"] # no web

key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="   # made in May
   id = "00000000000000ab" # on the wire
version = 1
from = [
  "203.0.113.0/24", # the office
]
`

var then = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// changed writes a client file, changes it, and returns the client and the file.
func changed(t *testing.T, text string, change func(*Client) error) (*Client, string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "alice.toml")
	lab.Must(t, os.WriteFile(path, []byte(text), 0o600))
	c := lab.Value(ChangeClient(dir, "alice", change))(t)
	lab.OnlyFiles(t, dir, "alice.toml")
	back, err := ReadClient(path)
	if err != nil || !sameClient(back, c) {
		t.Errorf("the file says %+v, %v, want %+v", back, err, c)
	}
	data := lab.Value(os.ReadFile(path))(t)
	return c, string(data)
}

func rotating(c *Client) error {
	c.Rotate(then)
	return nil
}

func revoking(c *Client) error {
	c.Revoked = then
	return nil
}

// TestChangeKeepsWhatPeopleWrote: a change rewrites only the lines that it is about.
func TestChangeKeepsWhatPeopleWrote(t *testing.T) {
	c, got := changed(t, handwritten, rotating)
	if c.ID == 0xab || c.Previous.ID != 0xab ||
		c.Previous.Key.Reveal() != "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=" || !c.Previous.Until.Equal(then) {
		t.Errorf("rotated to %+v", c)
	}
	want := strings.Replace(handwritten, `key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="   # made in May`,
		fmt.Sprintf("key = %q   # made in May\nprevious = { id = \"00000000000000ab\", key = "+
			"\"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\", until = 2030-01-02T03:04:05Z }", c.Key.Reveal()), 1)
	want = strings.Replace(want, `id = "00000000000000ab" #`, fmt.Sprintf("id = %q #", c.ID), 1)
	if got != want {
		t.Errorf("the file is now\n%s\nwant\n%s", got, want)
	}
	again, got := changed(t, got, rotating)
	if again.Previous.ID != c.ID || !again.Previous.Key.Equal(c.Key) || strings.Count(got, "previous") != 1 {
		t.Errorf("rotated twice to %+v\n%s", again, got)
	}
	_, got = changed(t, handwritten, revoking)
	if want := strings.Replace(handwritten, "in May\n", "in May\nrevoked = 2030-01-02T03:04:05Z\n", 1); got != want {
		t.Errorf("the file is now\n%s\nwant\n%s", got, want)
	}
	_, got = changed(t, clientText+"revoked = 2029-01-01T00:00:00Z",
		func(c *Client) error { c.Revoked = time.Time{}; return nil })
	if got != clientText {
		t.Errorf("what was taken away left\n%s", got)
	}
}

// TestChangeOfUnusualFiles: however a file is written, a change keeps its meaning and its comments.
func TestChangeOfUnusualFiles(t *testing.T) {
	const key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	for name, text := range map[string]string{
		"no line break at the end": strings.TrimSuffix(clientText, "\n"),
		"the key last":             "version = 1\nid = \"00000000000000ab\"\nallow = [\"ssh\"]\nkey = \"" + key + "\"",
		"carriage returns":         strings.ReplaceAll(clientText, "\n", "\r\n"),
		"previous as a table": clientText + "[previous]\nid = \"00000000000000cd\"\nkey = \"" + key +
			"\"\nuntil = 2027-01-01T00:00:00Z\n",
		"previous with dots": clientText + "previous.id = \"00000000000000cd\"\nprevious.key = \"" + key +
			"\"\nprevious.until = 2027-01-01T00:00:00Z\n",
		"a key of several lines": strings.Replace(clientText, `"`+key+`"`, "\"\"\"\n"+key+"\"\"\"", 1),
		"a quoted key":           strings.Replace(clientText, "key =", `"key" =`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			c, got := changed(t, "# ours\n"+text, rotating)
			if !strings.HasPrefix(got, "# ours\n") {
				t.Errorf("a comment is lost:\n%s", got)
			}
			if c.Previous.ID != 0xab || c.Previous.Key.Reveal() != key || c.ID == 0xab {
				t.Errorf("rotated to %+v", c)
			}
			changed(t, text, revoking)
			changed(t, text, func(c *Client) error { c.Allow = []string{"web"}; return rotating(c) })
		})
	}
}

func TestChangeRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "clients")
	path := filepath.Join(dir, "alice.toml")
	outside := filepath.Join(dir, "..", "alice.toml")
	lab.Must(t, errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, []byte(handwritten), 0o600),
		os.WriteFile(outside, []byte(handwritten), 0o600)))
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		name   string
		change func(*Client) error
	}{
		"no name":          {"../alice", rotating},
		"no file":          {"bob", rotating},
		"its own refusal":  {"alice", func(c *Client) error { c.ID = 7; return boom }},
		"an invalid value": {"alice", func(c *Client) error { c.Allow = []string{"SSH"}; return nil }},
		"no key":           {"alice", func(c *Client) error { c.Key = Key{}; return nil }},
	} {
		if got, err := ChangeClient(dir, c.name, c.change); err == nil || got != nil {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	if _, err := ChangeClient(filepath.Join(dir, "none"), "alice", rotating); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: got %v", err)
	}
	for _, path := range []string{path, outside} {
		if got, _ := os.ReadFile(path); string(got) != handwritten {
			t.Errorf("%s is now\n%s", path, got)
		}
	}
	lab.OnlyFiles(t, dir, "alice.toml")
}

// TestChangesAreInTurn: two programs that change one file do not undo each other's change.
func TestChangesAreInTurn(t *testing.T) {
	dir := t.TempDir()
	lab.Must(t, WriteClient(dir, &Client{Name: "alice", ID: 1, Key: NewKey(), Allow: []string{}}, true))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := ChangeClient(dir, "alice", func(c *Client) error {
				c.Allow = append(c.Allow[:len(c.Allow):len(c.Allow)], fmt.Sprintf("s%d", i))
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c, err := ReadClient(filepath.Join(dir, "alice.toml"))
	if err != nil || len(c.Allow) != 20 {
		t.Errorf("got %v, %v, want 20 changes", c, err)
	}
}

func TestChangeGates(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gate.key")
	text := "# ours\nversion = 1\nkey = \"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\" # first\n"
	lab.Must(t, os.WriteFile(path, []byte(text), 0o600))
	rotate := func(g *Gates) error { g.Rotate(then); return nil }
	g, err := ChangeGates(path, rotate)
	if err != nil || g.Previous.Reveal() != "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=" ||
		g.Current.Equal(g.Previous) || !g.Until.Equal(then) {
		t.Fatalf("got %v, %v", g, err)
	}
	data, _ := os.ReadFile(path)
	want := "# ours\nversion = 1\nkey = \"" + g.Current.Reveal() + "\" # first\nprevious = { key = \"" +
		g.Previous.Reveal() + "\", until = 2030-01-02T03:04:05Z }\n"
	if string(data) != want {
		t.Errorf("got\n%swant\n%s", data, want)
	}
	back, err := ReadGate(path)
	if err != nil || !bytes.Equal(back.text(), g.text()) {
		t.Errorf("read %v, %v", back, err)
	}
	boom := errors.New("boom")
	if _, err := ChangeGates(path, func(g *Gates) error { g.Rotate(then); return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if _, err := ChangeGates(path, func(g *Gates) error { g.Current = GateKey{}; return nil }); err == nil {
		t.Error("a server without a gate key was written")
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(data, after) {
		t.Errorf("the file is now\n%s", after)
	}
	root := lab.Value(os.OpenRoot(dir))(t)
	defer root.Close()
	if in, err := ReadGateIn(root, dir, "gate.key"); err != nil || !bytes.Equal(in.text(), g.text()) {
		t.Errorf("through the open directory: %v, %v", in, err)
	}
	lab.OnlyFiles(t, dir, "gate.key")
}

func TestPreviousGateRefuses(t *testing.T) {
	const key, other = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "AAEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	path := filepath.Join(t.TempDir(), "gate.key")
	read := func(previous string) (Gates, error) {
		lab.Must(t, os.WriteFile(path, []byte("version = 1\nkey = \""+key+"\"\nprevious = "+previous+"\n"), 0o600))
		return ReadGate(path)
	}
	if g, err := read(`{ key = "` + other + `", until = 2030-01-01T00:00:00Z }`); err != nil ||
		g.Previous.Reveal() != other {
		t.Fatalf("got %v, %v", g, err)
	}
	for previous, want := range map[string]string{
		`{ key = "` + key + `", until = 2030-01-01T00:00:00Z }`:       ":3: previous.key: is the current key",
		`{ key = "` + other[1:] + `", until = 2030-01-01T00:00:00Z }`: ":3: previous.key: a key is 32 bytes",
		`{ key = "` + other + `" }`:                                   ":3: previous.until: missing",
		`{ until = 2030-01-01T00:00:00Z }`:                            ":3: previous.key: missing",
		`{ key = "` + other + `", until = 0001-01-01T00:00:00Z }`:     ":3: previous.until: is not a date",
		`{ key = "` + other + `", until = 2030-01-01T00:00:00 }`: ":3: previous.until: should be a date and time with its " +
			"zone",
		`{ key = "` + other + `", until = 2030-01-01T00:00:00Z, id = "00" }`: ":3: previous.id: unknown key",
		`"` + other + `"`: ":3: previous: should be a table",
	} {
		g, err := read(previous)
		if err == nil || !g.Current.IsZero() || !g.Previous.IsZero() || !strings.Contains(err.Error(), path+want) ||
			strings.Contains(err.Error(), other[1:]) {
			t.Errorf("%s: got %v, %v, want %s", previous, g, err, want)
		}
	}
}
