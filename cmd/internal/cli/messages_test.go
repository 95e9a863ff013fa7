package cli

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

var update = flag.Bool("update", false, "rewrite testdata/messages-*.golden")

// TestMessages keeps every text that the programs may print in three files, so that they can be read together: every
// string of several words in their packages, except help texts. After a change: go test ./cmd/internal/cli -run
// Messages -update, and read what has changed.
func TestMessages(t *testing.T) {
	for program, patterns := range map[string][]string{
		"spa-client": {"cmd/spa-client/*.go", "cmd/internal/cli/*.go", "cmd/internal/tty/*.go",
			"spa/client/*.go", "spa/client/doctor/*.go", "spa/receipt.go",
			"keys/profile*.go", "keys/token*.go", "keys/service/text.go"},
		"spa-keygen": {"cmd/spa-keygen/*.go", "cmd/internal/enrol/*.go", "keys/*.go", "keys/*/*.go"},
		"spa-fleet":  {"cmd/spa-fleet/*.go", "spa/fleet/*.go", "spa/fleet/office/*.go"},
		"spa-server": {"cmd/spa-server/*.go", "spa/server/*.go", "spa/server/feed/*.go", "spa/server/setup/*.go",
			"spa/server/control/*.go", "spa/check/*.go", "spa/config/*.go", "spa/audit/*.go", "spa/replay/*.go",
			"spa/policy/*.go", "spa/sandbox/*.go", "spa/capture/*.go", "firewall/*.go", "firewall/survey/*.go"},
	} {
		t.Run(program, func(t *testing.T) {
			testMessages(t, filepath.Join("testdata", "messages-"+program+".golden"), patterns)
		})
	}
}

func testMessages(t *testing.T, golden string, patterns []string) {
	var all strings.Builder
	for _, pattern := range patterns {
		for _, path := range sources(t, pattern) {
			if found := messages(t, path); len(found) > 0 {
				name, _ := filepath.Rel("../../..", path)
				all.WriteString("== " + filepath.ToSlash(name) + "\n" + strings.Join(found, "\n") + "\n")
			}
		}
	}
	if *update {
		lab.Must(t, os.WriteFile(golden, []byte(all.String()), 0o644))
	}
	want := lab.Value(os.ReadFile(golden))(t)
	if all.String() != string(want) {
		t.Errorf("%s is not what the program says: run with -update and read the difference\nnew: %q\ngone: %q",
			golden, missing(all.String(), string(want)), missing(string(want), all.String()))
	}
	for line := range strings.Lines(all.String()) {
		checkWords(t, strings.TrimSuffix(line, "\n"))
	}
}

// missing returns the lines of a that are not in b.
func missing(a, b string) []string {
	have := strings.Split(b, "\n")
	return slices.DeleteFunc(strings.Split(a, "\n"), func(line string) bool { return slices.Contains(have, line) })
}

// checkWords checks the rules for all messages.
func checkWords(t *testing.T, message string) {
	t.Helper()
	lower := strings.ToLower(message)
	for _, word := range []string{"failed to", "please", "invalid", "sorry", "oops", "!"} {
		if strings.Contains(lower, word) {
			t.Errorf("%q: has %q in it, which tells nobody what to do", message, word)
		}
	}
}

// ofRules matches files with texts for the kernel and for iptables, not for people.
var ofRules = regexp.MustCompile(`firewall/(text|iptables_` +
	`(rules|bare|inward|outward|quoted|links|saved)|helper_programs)[^/]*$`)

// sources returns the module's files that match a pattern, for all systems, without tests.
func sources(t *testing.T, pattern string) []string {
	t.Helper()
	paths := lab.Value(filepath.Glob(filepath.Join("../../..", pattern)))(t)
	return slices.DeleteFunc(paths, func(p string) bool {
		return strings.HasSuffix(p, "_test.go") ||
			ofRules.MatchString(p)
	})
}

// literal returns the text of a string literal, on one line.
func literal(e ast.Expr) (text string, ok bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return strings.NewReplacer("\n", `\n`, "\x00", `\x00`).Replace(text), err == nil
}

// operands returns the operands of a sum, from left to right.
func operands(e ast.Expr) []ast.Expr {
	if sum, ok := e.(*ast.BinaryExpr); ok && sum.Op == token.ADD {
		return append(operands(sum.X), operands(sum.Y)...)
	}
	return []ast.Expr{e}
}

// messages returns a file's texts of several words, in order.
func messages(t *testing.T, path string) []string {
	t.Helper()
	file := lab.Value(parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution))(t)
	var found []string
	note := func(text string) {
		if strings.Contains(strings.Trim(strings.ReplaceAll(text, `\n`, ""), " "), " ") {
			found = append(found, text)
		}
	}
	var visit func(n ast.Node) bool
	visit = func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.Field:
			return n.Tag == nil
		case *ast.KeyValueExpr:
			name, ok := n.Key.(*ast.Ident)
			return !ok || name.Name != "Long" && name.Name != "Example"
		case *ast.BinaryExpr:
			text := "" // of literals that form one text on several lines
			for _, e := range operands(n) {
				part, ok := literal(e)
				if text += part; !ok {
					note(text)
					text = ""
					if e != n {
						ast.Inspect(e, visit)
					}
				}
			}
			note(text)
			if n.Op != token.ADD {
				ast.Inspect(n.X, visit)
				ast.Inspect(n.Y, visit)
			}
			return false
		case *ast.BasicLit:
			if text, ok := literal(n); ok {
				note(text)
			}
		}
		return true
	}
	ast.Inspect(file, visit)
	return found
}
