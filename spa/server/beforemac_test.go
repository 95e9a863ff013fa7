package server

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/scanner"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/spa/lab"

	"golang.org/x/tools/go/packages"
)

// The list under testdata has the functions of this module that can run on a packet before its MAC has been verified,
// each with its lines of code. Anyone on the internet can reach this code, so it should grow only on purpose.

var update = flag.Bool("update", false, "rewrite the list of functions that run before the MAC")

const (
	beforeMAC = "testdata/before_mac.txt"
	// line is the function where a packet enters our code.
	line = "(*spa/server.Server).loop"
)

// afterMAC lists functions that are called on that path only after the MAC has been verified: what only they call does
// not count. Each line is a place where the path ends for other packets.
var afterMAC = strings.Fields(`
	spa.withdrawn (*spa.Opener).openBody (*spa.Opener).refuse spa.fresh
	(spa/audit.Event).Of (*spa/policy.Policy).Source
	spa/server.entry (*spa/replay.Journal).Admit spa/server.asSpent
	(*spa/server.Server).spendForAll (*spa/server.Server).decide
	(*spa.Opener).CheckFrame (*spa/server.checks).again (*spa/server.Server).recheck (*spa/server.checks).keep
	(*spa/server/metrics.Page).Decided
	(*spa/server.Server).answer (*spa/server.Server).tooEarly
	(*spa/server.sightings).note
	spa/server/feed.DecisionOf (*spa/server/feed.ends).expect spa/server/feed.GrantsOf
	(*spa/audit.Log).tally (spa/audit.Event).attrs
	(spa/audit.Verdict).level (*spa/audit.Log).write
`)

func TestLinesBeforeTheMAC(t *testing.T) {
	code := loadCode(t)
	reached := code.reach(line)
	for _, name := range afterMAC {
		if !code.cut[name] {
			t.Errorf("%s is no longer on the path: remove it from afterMAC", name)
		}
	}
	var list strings.Builder
	total := 0
	for _, name := range slices.Sorted(maps.Keys(reached)) {
		fmt.Fprintf(&list, "%3d %s\n", reached[name], name)
		total += reached[name]
	}
	fmt.Fprintf(&list, "%3d lines in %d functions\n", total, len(reached))
	if *update {
		lab.Must(t, errorsOf(os.MkdirAll(filepath.Dir(beforeMAC), 0o755),
			os.WriteFile(beforeMAC, []byte(list.String()), 0o644)))
	}
	want := lab.Value(os.ReadFile(beforeMAC))(t)
	if string(want) != list.String() {
		t.Errorf("what runs before the MAC has held is another code than %s says. If that is meant: go test ./spa/server "+
			"-run %s -update, and the number in SECURITY.md\n%s",
			beforeMAC, t.Name(), differing(string(want), list.String()))
	}
	page := lab.Value(os.ReadFile("../../SECURITY.md"))(t)
	if stated := fmt.Sprintf("%d lines in %d functions", total, len(reached)); !strings.Contains(string(page), stated) {
		t.Errorf("SECURITY.md does not say %q", stated)
	}
}

func errorsOf(errs ...error) error { return cmp.Or(errs...) }

// differing returns the lines that only one of two texts has.
func differing(before, after string) string {
	var lines []string
	for _, side := range []struct{ sign, of, other string }{{"-", before, after}, {"+", after, before}} {
		for l := range strings.Lines(side.of) {
			if !strings.Contains(side.other, l) {
				lines = append(lines, side.sign+strings.TrimSuffix(l, "\n"))
			}
		}
	}
	return strings.Join(lines, "\n")
}

// code is all functions of this module that the server consists of.
type code struct {
	bodies map[string]body
	types  []*types.Named // of this module, whose methods an interface may stand for
	cut    map[string]bool
}

type body struct {
	decl *ast.FuncDecl
	info *types.Info
	size int // lines with code
}

func loadCode(t *testing.T) *code {
	t.Helper()
	// Ours are parsed from source, and their imports come compiled.
	mode := packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo |
		packages.NeedImports
	loaded, err := packages.Load(&packages.Config{Mode: mode, Env: append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")},
		module+"spa/...", module+"firewall/...", module+"keys/...")
	lab.Must(t, err)
	c := &code{bodies: make(map[string]body), cut: make(map[string]bool)}
	server := slices.IndexFunc(loaded, func(p *packages.Package) bool { return p.PkgPath == module+"spa/server" })
	packages.Visit(loaded[server:server+1], nil, func(p *packages.Package) {
		for _, err := range p.Errors {
			t.Error(err)
		}
		if strings.HasPrefix(p.PkgPath, module) {
			c.add(p)
		}
	})
	return c
}

const module = "sallyport/"

func (c *code) add(p *packages.Package) {
	for _, file := range p.Syntax {
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Body != nil {
				c.bodies[nameOf(p.TypesInfo.Defs[f.Name].(*types.Func))] = body{f, p.TypesInfo, linesOf(p.Fset, f)}
			}
		}
	}
	for _, name := range p.Types.Scope().Names() {
		if object, ok := p.Types.Scope().Lookup(name).(*types.TypeName); ok {
			if named, ok := object.Type().(*types.Named); ok && !types.IsInterface(named) {
				c.types = append(c.types, named)
			}
		}
	}
}

// nameOf returns "(*spa/server.Server).loop".
func nameOf(f *types.Func) string { return strings.ReplaceAll(f.Origin().FullName(), module, "") }

// linesOf counts the lines of a function that hold code.
func linesOf(fset *token.FileSet, f *ast.FuncDecl) int {
	from, to := fset.Position(f.Pos()), fset.Position(f.End())
	source, err := os.ReadFile(from.Filename)
	if err != nil {
		return 0
	}
	text := source[from.Offset:to.Offset]
	file := token.NewFileSet().AddFile("", -1, len(text))
	var s scanner.Scanner
	s.Init(file, text, nil, 0) // without comments
	lines := make(map[int]bool)
	for {
		pos, tok, _ := s.Scan()
		if tok == token.EOF {
			return len(lines)
		}
		if tok != token.SEMICOLON {
			lines[file.Line(pos)] = true
		}
	}
}

// reach returns the functions, with their lines, that the named function can run: those that its body names, whether it
// calls them or passes them on, and so on. An interface stands for every type of ours that has its methods, except
// error: before the MAC has been verified there are only errors that package errors made.
func (c *code) reach(name string) map[string]int {
	reached := make(map[string]int)
	for todo := []string{name}; len(todo) > 0; {
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		f, ours := c.bodies[next]
		if _, seen := reached[next]; seen || !ours {
			continue
		}
		if slices.Contains(afterMAC, next) {
			c.cut[next] = true
			continue
		}
		reached[next] = f.size
		todo = append(todo, c.named(f)...)
	}
	return reached
}

// named returns the functions that a body names.
func (c *code) named(f body) []string {
	var names []string
	ast.Inspect(f.decl.Body, func(n ast.Node) bool {
		id, ok := n.(*ast.Ident)
		if !ok {
			return true
		}
		if called, ok := f.info.Uses[id].(*types.Func); ok {
			names = append(names, nameOf(called))
			names = append(names, c.behind(called)...)
		}
		return true
	})
	return names
}

// behind returns the methods that an interface's method may stand for.
func (c *code) behind(f *types.Func) []string {
	receiver := f.Signature().Recv()
	if receiver == nil || !types.IsInterface(receiver.Type()) || f.FullName() == "(error).Error" {
		return nil
	}
	iface := receiver.Type().Underlying().(*types.Interface)
	var names []string
	for _, named := range c.types {
		if pointer := types.NewPointer(named); named.TypeParams().Len() == 0 && types.Implements(pointer, iface) {
			method, _, _ := types.LookupFieldOrMethod(pointer, true, named.Obj().Pkg(), f.Name())
			names = append(names, nameOf(method.(*types.Func)))
		}
	}
	return names
}
