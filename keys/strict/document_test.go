package strict

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

type testFile struct {
	Version int64               `toml:"version"`
	Name    string              `toml:"name"`
	On      bool                `toml:"on"`
	When    *time.Time          `toml:"when"`
	List    []string            `toml:"list"`
	Mixed   []any               `toml:"mixed"`
	Limits  testLimits          `toml:"limits"`
	Service map[string]testItem `toml:"service"`
	hidden  string              //lint:ignore U1000 a field without a name in the file is passed over
}

type testLimits struct {
	Grants int64 `toml:"grants"`
	Live   int64 `toml:"live_nonces"`
}

type testItem struct {
	Ports []string `toml:"ports"`
}

func decodeText(text string) (testFile, error) {
	var f testFile
	_, err := Decode("dir/f.toml", []byte(text), &f)
	return f, err
}

func TestDecode(t *testing.T) {
	f, err := decodeText("version = 1\nname = 'x'\non = true\nwhen = 2027-01-01T00:00:00+02:00\nlist = " +
		"[\n\"a\", # b\n\"c\"]\n" +
		"mixed = [1, { port = 2 }]\nlimits.grants = 3\nservice.ssh = { ports = [\"tcp/22\"] }\n[service.web]\nports = []\n")
	lab.Must(t, err)
	if f.Name != "x" || !f.On || len(f.List) != 2 || f.Limits.Grants != 3 || len(f.Service) != 2 ||
		f.When.UTC().Hour() != 22 || len(f.Mixed) != 2 {
		t.Errorf("got %+v", f)
	}
}

// TestDecodeRefuses lists, for each refused file, the lines of the error.
func TestDecodeRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":  {"version = 1\nnam = 1", `:2: nam: unknown key (did you mean "name"?)`},
		"case":         {"version = 1\nName = 'a'", `:2: Name: unknown key (did you mean "name"?)`},
		"hidden field": {"version = 1\nhidden = 'a'", ":2: hidden: unknown key"},
		"in a table": {"version = 1\n[limits]\nlive = 1\ngrant = 1",
			":3: limits.live: unknown key\n" + `:4: limits.grant: unknown key (did you mean "grants"?)`},
		"in a map": {"version = 1\n[service.ssh]\nport = []",
			`:3: service.ssh.port: unknown key (did you mean "ports"?)`},
		"in an inline": {"version = 1\nlimits = {\ngrant = 1 }", `:3: limits.grant: unknown key (did you mean "grants"?)`},
		"dotted":       {"version = 1\nlimits.grant = 1", `:2: limits.grant: unknown key (did you mean "grants"?)`},
		"unknown table": {"version = 1\n[limit]\na = 1\n[x]",
			":2: limit: unknown key (did you mean \"limits\"?)\n:4: x: unknown key"},
		"key under table": {"version = 1\n[limits]\nlist = []", ":3: limits.list: unknown key here; it belongs above the " +
			"first [table]"},
		"key of a table":   {"version = 1\ngrants = 1", ":2: grants: unknown key here; it belongs in [limits]"},
		"not text":         {"version = 1\nname = 1", ":2: name: should be text in quotes"},
		"not bool":         {"version = 1\non = 'true'", ":2: on: should be true or false"},
		"not whole":        {"version = 1\n[limits]\ngrants = 1.5", ":3: limits.grants: should be a whole number"},
		"not a list":       {"version = 1\nlist = 'a'", ":2: list: should be a list: [ … ]"},
		"not a text in it": {"version = 1\nlist = ['a', 1]", ":2: list: each entry of the list should be text in quotes"},
		"not a table":      {"version = 1\nlimits = 1", ":2: limits: should be a table"},
		"list of tables":   {"version = 1\n[[limits]]\ngrants = 1", ":2: limits: should be a table"},
		"date": {"version = 1\nwhen = 2027-01-01",
			":2: when: should be a date and time with its zone, unquoted: 2027-01-01T00:00:00Z"},
		"no zone": {"version = 1\nwhen = 2027-01-01T00:00:00",
			":2: when: should be a date and time with its zone, unquoted: 2027-01-01T00:00:00Z"},
		"time as text": {"version = 1\nwhen = '2027-01-01T00:00:00Z'",
			":2: when: should be a date and time with its zone, unquoted: 2027-01-01T00:00:00Z"},
		"no such day": {"version = 1\nwhen = 2027-02-30T00:00:00Z", ":2: not valid TOML: impossible date"},
		"several": {"version = 1\nname = 1\nlst = []",
			":2: name: should be text in quotes\n:3: lst: unknown key (did you mean \"list\"?)"},
		"twice":          {"version = 1\nname = 'a'\nname = 'b'", ":3: not valid TOML: key name is already defined"},
		"no version":     {"name = 'a'", ": version: missing: version = 1"},
		"empty":          {"", ": version: missing: version = 1"},
		"other version":  {"version = 2\nnew = 1", ":1: version: this program reads version 1 of the file"},
		"no equals":      {"version = 1\nname\n", ":2: not valid TOML: expected '=' after key"},
		"before version": {"name = abc\nversion = 1", ":1: not valid TOML: unexpected character"},
		"below a text": {"version = 1\nname.x = 1\nwhen.y = 1\n[on]\nz = 1",
			":2: name.x: unknown key\n:3: when.y: unknown key\n:4: on: should be true or false"},
		"below anything": {"version = 1\nmixed = [[{ a.b = 1 }]]\nx.y.z = 1", ":3: x: unknown key"},
		"no quotes":      {"version = 1\nname = abc", ":2: not valid TOML: unexpected character"},
		"no end":         {"version = 1\nname = 'abc\n", ":2: not valid TOML: literal strings cannot have new lines"},
		"too large": {"version = 1\n[limits]\ngrants = 9999999999999999999",
			":3: not valid TOML: decimal number is too large to fit in a 64-bit signed integer"},
		"not UTF-8": {"version = 1\nname = '\xff'", ":2: not valid TOML: invalid UTF-8 character in literal string"},
	} {
		_, err := decodeText(c.text)
		want := "dir/f.toml" + strings.ReplaceAll(c.want, "\n:", "\ndir/f.toml:")
		if err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", name, err, want)
		}
	}
}

func TestDecodeFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f.toml")
	text := "version = 1\nname = 'a'\n"
	lab.Must(t, os.WriteFile(path, []byte(text), 0o644))
	var f testFile
	d, err := DecodeFile(path, int64(len(text)), &f)
	if err != nil || f.Name != "a" || !d.Has("name") || d.Has("list") {
		t.Fatalf("got %+v, %v", f, err)
	}
	if got := d.Problem("name", "is %d", 7).Error(); got != path+":2: name: is 7" {
		t.Errorf("got %s", got)
	}
	if _, err := DecodeFile(path, int64(len(text))-1, &f); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("over the limit: got %v", err)
	}
	if _, err := DecodeFile(filepath.Join(dir, "none"), 99, &f); !errors.Is(err, os.ErrNotExist) ||
		strings.Count(err.Error(), "none") != 1 {
		t.Errorf("no file: got %v", err)
	}
	if _, err := DecodeFile(dir, 9999, &f); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: got %v", err)
	}
	if _, err := DecodeFile(os.DevNull, 9999, &f); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a device: got %v", err)
	}
}
