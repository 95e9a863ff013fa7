package strict

import (
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// A generator writes files as people do.
type generator struct {
	*rand.Rand
	text strings.Builder
}

func (g *generator) of(choices ...string) string { return choices[g.IntN(len(choices))] }

// line writes a line, perhaps with others around it that must stay.
func (g *generator) line(text string) {
	for g.IntN(4) == 0 {
		g.text.WriteString(g.of("", "# one", "  # name = \"x\"", "#\tlimits.grants = 7", "# [limits]", "\t") + "\n")
	}
	g.text.WriteString(g.of("", "", "  ", "\t") + text + g.of("", "", " ", "  # why", "# x = [\"", "\t# \"") + "\n")
}

func (g *generator) pair(key, value string) string {
	return key + g.of(" = ", "=", "  =  ", "\t= ") + value
}

func (g *generator) list() string {
	return g.of(`["a"]`, `[]`, `[ 'a', "b#" ]`, "[\n  \"a\",\n  'b]',\n]",
		"[ # within\n  # within\n  # within\n  \"a\", # within\n  # within\n]", "['''\na''']")
}

// file returns a valid file.
func (g *generator) file() string {
	g.line(g.pair("version", "1"))
	top := []string{
		g.pair("name", g.of(`"x"`, `'y # z'`, `"""a"""`, "\"\"\"\nb\n= c\"\"\"", `"\"="`)),
		g.pair(g.of("on", `"on"`), g.of("true", "false")),
		g.pair("when", g.of("2027-01-01T00:00:00Z", "2027-01-01 02:00:00+02:00")),
		g.pair("list", g.list()),
	}
	g.Shuffle(len(top), func(i, j int) { top[i], top[j] = top[j], top[i] })
	for _, text := range top[g.IntN(len(top)):] {
		g.line(text)
	}
	switch g.IntN(4) { // what is in no section comes first
	case 0:
		g.line(g.of("limits.grants = 3", "limits = { grants = 3 }", "limits = {grants=3,live_nonces=4}", "limits = {}",
			"limits . grants = 3", "limits = {\n # within\n grants = 3, # within\n}"))
		g.services()
	case 1:
		g.line(g.of(`service.ssh.ports = ["a"]`, `service = { ssh = { ports = ["a"] }, web = { ports = [] } }`,
			`service.ssh = { ports = [] }`, `service = { ssh.ports = ["a"] }`))
		g.limits()
	case 2:
		g.services()
		g.limits()
	case 3:
		g.limits()
		g.services()
	}
	text := g.text.String()
	if g.IntN(4) == 0 {
		text = strings.TrimRight(text, "\n")
	}
	if g.IntN(4) == 0 {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	return text
}

func (g *generator) limits() {
	g.line(g.of("[limits]", "[ limits ]", `["limits"]`))
	for _, key := range []string{"grants", "live_nonces"} {
		if g.IntN(2) == 0 {
			g.line(g.pair(key, g.of("1", "0x10", "1_000")))
		}
	}
}

func (g *generator) services() {
	if g.IntN(3) == 0 {
		g.line("[service]")
		g.line(g.of(`ssh = { ports = ["a"] }`, `ssh.ports = ["a"]`))
		return
	}
	for _, name := range []string{"ssh", "web", "db"} {
		if g.IntN(2) == 0 {
			g.line("[service." + name + "]")
			g.line(g.pair("ports", g.list()))
		}
	}
}

// law is a setting, and what a program then reads.
type law struct {
	arg   string
	apply func(*testFile)
}

func (f *testFile) setPorts(name string, ports ...string) {
	if f.Service == nil {
		f.Service = make(map[string]testItem)
	}
	f.Service[name] = testItem{ports}
}

func laws() []law {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	hostile := "a\"b\\\n\x1b[2J\u202e #'\x00\U000e0001 = [" + strings.Repeat("é", 300)
	return []law{
		{"name=" + hostile, func(f *testFile) { f.Name = hostile }},
		{"name=plain", func(f *testFile) { f.Name = "plain" }},
		{`name="as in it"`, func(f *testFile) { f.Name = "as in it" }},
		{"name=", func(f *testFile) { f.Name = "" }},
		{"name=[::1]:443", func(f *testFile) { f.Name = "[::1]:443" }},
		{`list="a", 'b,c'`, func(f *testFile) { f.List = []string{"a", "b,c"} }},
		{"on=true", func(f *testFile) { f.On = true }}, {"on=", func(f *testFile) { f.On = false }},
		{"when=2030-01-02T05:04:05+02:00", func(f *testFile) { f.When = &at }}, {"when=", func(f *testFile) { f.When = nil }},
		{"list=a, b#", func(f *testFile) { f.List = []string{"a", "b#"} }},
		{"list=[ 'a',\n'b' ]", func(f *testFile) { f.List = []string{"a", "b"} }},
		{"list=[]", func(f *testFile) { f.List = []string{} }}, {"list=", func(f *testFile) { f.List = nil }},
		{"mixed=1,2", func(f *testFile) { f.Mixed = []any{int64(1), int64(2)} }},
		{"limits.grants=0x1F", func(f *testFile) { f.Limits.Grants = 31 }},
		{"limits.grants=", func(f *testFile) { f.Limits.Grants = 0 }},
		{"limits.live_nonces=5", func(f *testFile) { f.Limits.Live = 5 }},
		{"limits=", func(f *testFile) { f.Limits = testLimits{} }},
		{"service.ssh.ports=x,y", func(f *testFile) { f.setPorts("ssh", "x", "y") }},
		{"service.new.ports=z", func(f *testFile) { f.setPorts("new", "z") }},
		{"service.web=", func(f *testFile) { delete(f.Service, "web") }},
		{"service=", func(f *testFile) { f.Service = nil }},
	}
}

// full returns the file without services that say nothing.
func (f testFile) full() testFile {
	f.Service = maps.Clone(f.Service)
	maps.DeleteFunc(f.Service, func(_ string, item testItem) bool { return item.Ports == nil })
	return f
}

// same reports whether two files say the same.
func same(a, b testFile) bool {
	for _, f := range []*testFile{&a, &b} {
		if f.When != nil {
			utc := f.When.UTC()
			f.When = &utc
		}
		if len(f.Service) == 0 {
			f.Service = nil
		}
	}
	return reflect.DeepEqual(a, b)
}

// settle sets arguments in a file and returns it, and what it says.
func settle(t *testing.T, text string, args ...string) (string, []string, testFile) {
	t.Helper()
	settings := lab.Value(ParseSettings(new(testFile), args))(t)
	var f testFile
	d, err := Decode("f.toml", []byte(text), &f)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	after, changed, err := d.Set(settings)
	if err != nil {
		t.Fatalf("%.40q: %v in\n%s", args, err, text)
	}
	f = testFile{}
	if _, err := Decode("f.toml", after, &f); err != nil {
		t.Fatalf("%.40q: %v in\n%s\nfrom\n%s", args, err, after, text)
	}
	return string(after), changed, f
}

// TestSetLaw: a file in which a key was set says what it said with that key set, and every other line is still there;
// setting it again changes nothing.
func TestSetLaw(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for i := range uint64(200) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, i))}
		text := g.file()
		for _, l := range laws() {
			_, _, want := settle(t, text)
			l.apply(&want)
			after, changed, got := settle(t, text, l.arg)
			if !same(got, want) || (len(changed) == 0) != (after == text) {
				t.Fatalf("seed %d, %d: %.40q: got %+v, want %+v, changed %v\n%s\nfrom\n%s", seed, i, l.arg, got, want, changed,
					after, text)
			}
			if again, changed, _ := settle(t, after, l.arg); len(changed) > 0 || again != after {
				t.Fatalf("seed %d, %d: %.40q twice: %v\n%s\nfrom\n%s", seed, i, l.arg, changed, again, after)
			}
			if lost := lostLines(text, after, strings.HasSuffix(l.arg, "=")); lost != "" {
				t.Fatalf("seed %d, %d: %.40q: lost %q\n%s\nfrom\n%s", seed, i, l.arg, lost, after, text)
			}
			key, _, _ := strings.Cut(l.arg, "=")
			if strings.Count(after, "# within") != strings.Count(text, "# within") {
				t.Fatalf("seed %d, %d: %.40q: lost a comment within a value\n%s\nfrom\n%s", seed, i, l.arg, after, text)
			}
			_, _, removed := settle(t, after, key+"=")
			if _, _, never := settle(t, text, key+"="); !same(removed.full(), never.full()) {
				t.Fatalf("seed %d, %d: %.40q, removed: got %+v, want %+v", seed, i, l.arg, removed, never)
			}
		}
	}
}

// comments returns the comments on lines of their own, but for those within a value.
func comments(text string) []string {
	return slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool {
		line = strings.TrimSpace(line)
		return !strings.HasPrefix(line, "#") || line == "# within"
	})
}

// lostLines returns what should have stayed: comments, or, if a value was set, any line but those of the old value.
func lostLines(before, after string, removal bool) string {
	if was, is := comments(before), comments(after); removal && !slices.Equal(was, is) {
		return strings.Join(was, "\n")
	}
	if removal {
		return ""
	}
	old, now := strings.Split(before, "\n"), strings.Split(after, "\n")
	for len(old) > 0 && len(now) > 0 && old[0] == now[0] {
		old, now = old[1:], now[1:]
	}
	for len(old) > 0 && len(now) > 0 && old[len(old)-1] == now[len(now)-1] {
		old, now = old[:len(old)-1], now[:len(now)-1]
	}
	for i, line := range old {
		why := strings.HasSuffix(strings.TrimSpace(line), "# why")
		if i > 5 || strings.HasPrefix(strings.TrimSpace(line), "#") && !strings.Contains(line, "# within") ||
			why && !strings.HasSuffix(strings.TrimSpace(now[len(now)-1]), "# why") {
			return line
		}
	}
	return ""
}

// TestSetRefuses: what is no setting, or more than one, is refused, and no value is in the error: it may be a secret.
func TestSetRefuses(t *testing.T) {
	const secret = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	for arg, want := range map[string]string{
		"name":                              "name: should be KEY=VALUE",
		"nam=" + secret:                     `nam: unknown key (did you mean "name"?)`,
		secret:                              "(43 characters): unknown key",
		"secret " + secret:                  "(50 characters): unknown key",
		"=x":                                "(0 characters): unknown key",
		"a\x1b[2J=" + secret:                "(5 characters): unknown key",
		"limits.grant=1":                    `limits.grant: unknown key (did you mean "grants"?)`,
		"grants=1":                          "grants: unknown key here; it belongs in [limits]",
		"name.x=1":                          "name.x: unknown key",
		"list.0=a":                          "list.0: unknown key",
		"service.a b.ports=x":               "service.(3 characters).ports: unknown key",
		"service.a.ports.b=x":               "service.a.ports.b: unknown key",
		"limits..grants=1":                  "limits.(0 characters).grants: unknown key",
		"limits=1":                          "limits: is a section: name a key in it, such as limits.grants=VALUE",
		"service={a={ports=[]}}":            "service: is a section: name a key in it, such as service.NAME.ports=VALUE",
		"service.a=x":                       "service.a: is a section: name a key in it, such as service.a.ports=VALUE",
		"on=yes":                            "on: should be true or false",
		"on=\"true\"":                       "on: should be true or false",
		"limits.grants=1.5":                 "limits.grants: should be a whole number",
		"limits.grants=1\nlive_nonces=2":    "limits.grants: should be a whole number",
		"limits.grants=1 # why":             "limits.grants: should be a whole number",
		"limits.grants=":                    "",
		"when=2030-01-01":                   "when: should be a date and time with its zone",
		"when=" + secret:                    "when: should be a date and time with its zone",
		"name='" + secret:                   "name: should be text in quotes",
		"name=\"a\"\non = true":             "name: should be text in quotes",
		"list=[\"a\"]\nname = \"x\"":        "list: should be a list",
		"list=[1]":                          "list: each entry of the list should be text in quotes",
		"list=[ {} ]":                       "list: each entry of the list should be text in quotes",
		"list='a'], x = [1":                 "list: should be a list",
		"mixed=a":                           "mixed: should be a list",
		"name=\xff" + secret:                "name: is not UTF-8",
		"version=" + strings.Repeat("9", 9): "",
	} {
		_, err := ParseSettings(new(testFile), []string{arg})
		text := ""
		if err != nil {
			text = err.Error()
		}
		if !strings.HasPrefix(text, want) || want == "" && err != nil || strings.Contains(text, "MDEy") ||
			strings.ContainsAny(text, "\n\x1b") {
			t.Errorf("%q: got %q, want %q", arg, text, want)
		}
	}
	_, err := ParseSettings(new(testFile), []string{"name=a", "on=x", "name=b"})
	if err == nil || err.Error() != "on: should be true or false\nname: is given twice" {
		t.Errorf("got %v", err)
	}
}

// TestKeys lists the keys of a file.
func TestKeys(t *testing.T) {
	want := []string{"limits.grants", "limits.live_nonces", "list", "mixed", "name", "on", "service.N.ports", "version",
		"when"}
	if got := Keys(new(testFile), "N"); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestSetKeepsCommentsInLists: a new list is written on one line, and what people wrote between the entries of the old
// one goes above it.
func TestSetKeepsCommentsInLists(t *testing.T) {
	got, _, _ := settle(t, "version = 1\nlist = [\n  \"a\", # daily\n  # on leave:\n  \"b\",\n]  # all\non = true\n",
		"list=a,c")
	if want := "version = 1\n# daily\n# on leave:\nlist = [\"a\", \"c\"]  # all\non = true\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestSetLooks: what a person sees in the file after a change.
func TestSetLooks(t *testing.T) {
	const file = "version = 1\nname = \"x\"            # in a column\nlist = [\"a\"] # close\n\n[limits]\ngrants = 1\n" +
		"# live_nonces = 2\n\n[service.a]\nports = []\n"
	for want, args := range map[string][]string{
		strings.Replace(file, `"x"            #`, `"longer"       #`, 1):     {"name=longer"},
		strings.Replace(file, `"x"            #`, `"so long that it"  #`, 1): {"name=so long that it"},
		strings.Replace(file, `["a"] #`, `["a", "b"] #`, 1):                  {"list=a,b"},
		strings.Replace(file, "= 1\n# l", "= 1\nlive_nonces = 3\n# l", 1):    {"limits.live_nonces=3"},
		strings.Replace(file, "close\n", "close\non = true\n", 1):            {"on=true"},
		strings.Replace(file, "[service.a]\nports = []\n", "", 1):            {"service.a="},
		file + "\n[service.b]\nports = [\"x\"]\n":                            {"service.b.ports=x"},
		strings.Replace(file, "grants = 1\n", "", 1):                         {"limits.grants="},
		strings.Replace(file, "= 1\n# l", "= 2\n# l", 1):                     {"limits.grants=2", "name=x", "list=a"},
		file: {"list=[\n'a' # same\n]", "name='x'", "limits.grants=0x1"},
	} {
		if got, _, _ := settle(t, file, args...); got != want {
			t.Errorf("%q: got\n%s\nwant\n%s", args, got, want)
		}
	}
}
