package keys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sallyport/keys/place"
	"sallyport/spa/lab"
)

// samples has values for each key of a client file that can be set.
var samples = map[string][]string{
	"allow":          {"ssh,web", `["tcp/8443"]`, "[]"},
	"from":           {"203.0.113.0/24,2001:db8::/48", "192.0.2.7/32"},
	"deny":           {"203.0.113.0/24"},
	"widest4":        {"24", "8"},
	"widest6":        {"56", "64"},
	"delegate":       {"203.0.113.0/24,2001:db8::7/128", `["203.0.113.9/32"]`},
	"expires":        {"2027-01-31T00:00:00Z", "2027-01-31T00:00:00+05:45"},
	"max_for":        {"1h", `"90s"`},
	"recovery":       {"3", "1"},
	"require_source": {"true", "false"},
	"when":           {"mon-fri 08:00-18:00,sat 09:00-12:00", `["fri 22:00-02:00"]`},
}

// identity are the keys that have commands of their own.
const identity = "version id key revoked previous.id previous.key previous.until"

// TestEveryClientKeyCanBeSet: each key of a client file can be set, set again without effect, and removed, and the rest
// of the file stays.
func TestEveryClientKeyCanBeSet(t *testing.T) {
	for _, key := range ClientKeys() {
		if strings.Contains(identity, key) {
			continue
		}
		if len(samples[key]) == 0 {
			t.Errorf("samples has no value for %s", key)
		}
		for _, value := range samples[key] {
			t.Run(key+"="+value, func(t *testing.T) { testSetClient(t, key, value) })
		}
	}
}

func testSetClient(t *testing.T, key, value string) {
	dir, path := handwrittenClient(t)
	set := func(value string) ([]string, string) {
		t.Helper()
		c, changed, err := SetClient(dir, "alice", []string{key + "=" + value}, false, nil)
		back, readErr := ReadClient(path)
		if err := errors.Join(err, readErr); err != nil || !sameClient(back, c) {
			t.Fatalf("%v: got %+v, and the file says %+v", err, c, back)
		}
		return changed, string(lab.Value(os.ReadFile(path))(t))
	}
	_, text := set(value)
	if !strings.HasPrefix(text, "# The laptop of Alice, asset 4711.\n") || !strings.Contains(text, key) ||
		!strings.Contains(text, "# made in May\n   id = ") {
		t.Errorf("the file is now\n%s", text)
	}
	if changed, again := set(value); len(changed) > 0 || again != text {
		t.Errorf("again: changed %v\n%s", changed, again)
	}
	if key == "allow" { // a client must have it
		return
	}
	if _, text := set(""); strings.Contains(text, key+" =") {
		t.Errorf("removed: the file is now\n%s", text)
	}
}

func handwrittenClient(t *testing.T) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	path = filepath.Join(dir, "alice.toml")
	lab.Must(t, os.WriteFile(path, []byte(handwritten), 0o600))
	return dir, path
}

// TestSetClientRefuses: nothing is written if one of several settings has a mistake, and no value is in the error.
func TestSetClientRefuses(t *testing.T) {
	const secret = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	dir, path := handwrittenClient(t)
	boom := errors.New("boom")
	for want, args := range map[string][]string{
		path + ":2: allow: entry 1 is not a service": {"max_for=1h", "allow=" + secret},
		path + ":2: allow: entry 2 is listed twice":  {"allow=ssh,ssh"},
		path + ": allow: missing":                    {"allow="},
		path + ":8: from: entry 1":                   {"from=" + secret},
		path + ":8: from: is empty":                  {"from=[]"},
		"max_for: a duration is written":             {"max_for=" + secret},
		path + ": would be larger than":              {"from=" + strings.Repeat("192.0.2.1/32,", 6000) + "192.0.2.1/32"},
		"expires: should be a date and time":         {"expires=" + secret, "max_for=1h"},
		"ky: unknown key":                            {"max_for=1h", "ky=" + secret},
		"expires: is not a date":                     {"expires=0001-01-01T00:00:00Z"},
		"boom":                                       {"max_for=1h"},
	} {
		c, changed, err := SetClient(dir, "alice", args, false, func(before, after *Client) error {
			if len(before.Allow) == 1 && after.MaxFor > 0 {
				return boom
			}
			return nil
		})
		if err == nil || c != nil || changed != nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "MDEy") {
			t.Errorf("%.60q: got %v, %v, %v", args, c, changed, err)
		}
		if text := string(lab.Value(os.ReadFile(path))(t)); text != handwritten {
			t.Fatalf("%.60q: the file is now\n%s", args, text)
		}
	}
	if c, changed, err := SetClient(dir, "alice", []string{"max_for=1h"}, true, nil); err != nil || len(changed) != 1 ||
		c.MaxFor == 0 {
		t.Errorf("dry: got %v, %v, %v", c, changed, err)
	}
	if text := string(lab.Value(os.ReadFile(path))(t)); text != handwritten {
		t.Errorf("dry: the file is now\n%s", text)
	}
	for _, name := range []string{"../alice", "bob", "a\x1b"} {
		if _, _, err := SetClient(dir, name, []string{"max_for=1h"}, false, nil); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
	lab.OnlyFiles(t, dir, "alice.toml")
}

// TestSetInTurn: of settings that programs change at the same time none is lost.
func TestSetInTurn(t *testing.T) {
	dir, path := handwrittenClient(t)
	var wg sync.WaitGroup
	for key, values := range samples {
		wg.Go(func() {
			if _, _, err := SetClient(dir, "alice", []string{key + "=" + values[0]}, false, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c := lab.Value(ReadClient(path))(t)
	if len(c.Allow) != 2 || len(c.From) != 2 || len(c.Deny) != 1 || c.Expires.IsZero() || c.MaxFor == 0 ||
		!c.RequireSource || len(c.When) != 2 {
		t.Errorf("got %+v", c)
	}
}

// TestEditedMeanwhile: an edit made while a command changes the file is kept.
func TestEditedMeanwhile(t *testing.T) {
	dir, path := handwrittenClient(t)
	edited := handwritten + "# by hand\n"
	_, _, err := SetClient(dir, "alice", []string{"max_for=1h"}, false, func(_, _ *Client) error {
		return os.WriteFile(path, []byte(edited), 0o600)
	})
	if text := string(lab.Value(os.ReadFile(path))(t)); !errors.Is(err, place.ErrMeanwhile) || text != edited {
		t.Errorf("got %v\n%s", err, text)
	}
	_, _, err = SetClient(dir, "alice", []string{"max_for=1h"}, false, func(_, _ *Client) error { return os.Remove(path) })
	if _, missing := os.Lstat(path); err == nil || !errors.Is(missing, fs.ErrNotExist) {
		t.Errorf("a file that was removed: %v, %v", err, missing)
	}
}

// FuzzSetClient: whatever is set, the file can be read afterwards, as what SetClient returned, or was not changed.
func FuzzSetClient(f *testing.F) {
	for key, values := range samples {
		f.Add(key + "=" + values[0])
	}
	f.Add("allow=[\"a\"]\nkey = \"x\"")
	f.Fuzz(func(t *testing.T, arg string) {
		dir, path := handwrittenClient(t)
		before := lab.Value(ReadClient(path))(t)
		c, changed, err := SetClient(dir, "alice", []string{arg}, false, nil)
		back, readErr := ReadClient(path)
		if key, _, _ := strings.Cut(arg, "="); readErr != nil || err == nil && !sameClient(back, c) ||
			len(changed) == 0 && !sameClient(back, before) ||
			!strings.Contains(identity, key) && (back.ID != before.ID || !back.Key.Equal(before.Key)) {
			t.Errorf("%q: %v, %v, %v", arg, changed, err, readErr)
		}
	})
}
