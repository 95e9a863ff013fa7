package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// mutant is one change to a package. All of a package's are compiled in at once, as calls that a
// name given to the linker turns on: see switch.go.txt.
type mutant struct {
	site int
	way  byte // t: the condition is made true, f: false, x: the thing is taken out
	line int
	key  string // file, function, kind and source text: does not move with the lines
}

func (m mutant) name() string { return fmt.Sprintf("%c%d", m.way, m.site) }

// reached reports whether a test changes its way with the mutant, by what was noted of its site.
func (m mutant) reached(seen byte) bool {
	if m.way == 't' {
		return seen&2 != 0 // it was false
	}
	return seen&1 != 0
}

// source is a file on its way to being instrumented.
type source struct {
	path    string
	text    []byte
	fset    *token.FileSet
	fn      string
	edits   []edit
	sites   *int // number of sites in the subject so far
	mutants []mutant
	keys    map[string]int
	locks   map[string][]ast.Stmt
}

type edit struct {
	at   int
	text string
	end  bool // it closes what begins at or before at
}

// instrument returns a file with a switch at each site, and the mutants.
func instrument(path string, sites *int) ([]byte, []mutant, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	s := &source{path: path, text: text, fset: token.NewFileSet(), sites: sites, keys: make(map[string]int)}
	f, err := parser.ParseFile(s.fset, path, text, parser.SkipObjectResolution)
	if err != nil {
		return nil, nil, err
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		s.fn, s.locks = fn.Name.Name, make(map[string][]ast.Stmt)
		if fn.Recv != nil {
			s.fn = strings.TrimLeft(s.of(fn.Recv.List[0].Type), "*") + "." + s.fn
		}
		ast.Inspect(fn.Body, s.visit)
		s.unlock()
	}
	return s.edited(), s.mutants, nil
}

func (s *source) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.IfStmt:
		s.wrap(s.site(n.Cond, "if", "tf"), "mutantBool", n.Cond)
	case *ast.SwitchStmt:
		if n.Tag == nil {
			s.cases(n.Body)
		}
	case *ast.BinaryExpr:
		// An operand taken out is one that decides nothing.
		if way, ok := map[token.Token]string{token.LAND: "t", token.LOR: "f"}[n.Op]; ok {
			for _, x := range []ast.Expr{n.X, n.Y} {
				if b, ok := x.(*ast.BinaryExpr); !ok || b.Op != n.Op { // else its own operands are
					s.wrap(s.site(x, n.Op.String(), way), "mutantBool", x)
				}
			}
		}
	case *ast.BlockStmt:
		s.statements(n.List)
	case *ast.CaseClause:
		s.statements(n.Body)
	case *ast.CommClause:
		s.statements(n.Body)
	case *ast.CallExpr:
		s.rule(n)
	}
	return true
}

func (s *source) cases(body *ast.BlockStmt) {
	for _, c := range body.List {
		for _, x := range c.(*ast.CaseClause).List {
			s.wrap(s.site(x, "case", "tf"), "mutantBool", x)
		}
	}
}

// statements takes out calls whose results nobody uses. A lock goes together with what unlocks it.
func (s *source) statements(list []ast.Stmt) {
	for _, st := range list {
		var call ast.Expr
		switch st := st.(type) {
		case *ast.ExprStmt:
			call = st.X
		case *ast.DeferStmt:
			call = st.Call
		}
		c, ok := call.(*ast.CallExpr)
		if !ok {
			continue
		}
		if x, ok := c.Fun.(*ast.SelectorExpr); ok && locking[x.Sel.Name] {
			s.locks[s.of(x.X)] = append(s.locks[s.of(x.X)], st)
			continue
		}
		if _, ok := st.(*ast.ExprStmt); ok && s.of(c.Fun) != "panic" {
			s.when(s.site(st, "without", "x"), st)
		}
	}
}

var locking = map[string]bool{"Lock": true, "Unlock": true, "RLock": true, "RUnlock": true}

// unlock takes out a lock of a function, wherever that unlocks it, but not what another function unlocks.
func (s *source) unlock() {
	for _, name := range slices.Sorted(maps.Keys(s.locks)) {
		if len(s.locks[name]) > 1 {
			site := s.site(s.locks[name][0], "without lock", "x")
			for _, st := range s.locks[name] {
				s.when(site, st)
			}
		}
	}
}

// verdicts are the ends of rules of nftables: a rule without is a rule taken out.
var verdicts = []string{"Accept", "Drop", "back", "jump", "enter"}

// rule takes the conditions out of a rule of the guards: the parts of d.rule and Rule, and what is
// in the text of s.add. That a rule itself is taken out falls to statements.
func (s *source) rule(c *ast.CallExpr) {
	if c.Ellipsis.IsValid() || !strings.HasPrefix(s.path, "firewall/") {
		return
	}
	parts := c.Args
	switch s.of(c.Fun) {
	case "d.rule":
		parts = parts[1:] // the chain
	case "Rule":
	case "s.add":
		s.conditions(c.Args[1])
		return
	default:
		return
	}
	for _, part := range parts {
		if call, ok := part.(*ast.CallExpr); !ok || !slices.Contains(verdicts, s.of(call.Fun)) {
			s.wrap(s.site(part, "without part", "x"), "mutantPart", part)
		}
	}
}

// condition is one in the text of a rule of iptables. Conditions with a number to fill in, and a protocol that the
// next condition needs, cannot go alone.
var condition = regexp.MustCompile(`(?:! )?-[psdio] \S+|-m (?:comment )?\S+(?: !)?(?: --\S+(?: [^-!%]\S*)*)*|%s`)

var verdict = regexp.MustCompile(`(^| )-[jg] `)

// conditions takes them out of the text of a rule, one by one.
func (s *source) conditions(format ast.Expr) {
	lit, ok := format.(*ast.BasicLit)
	if !ok {
		return
	}
	text, err := strconv.Unquote(lit.Value)
	if err != nil {
		return
	}
	does := verdict.FindStringIndex(text + " -j ")[0]
	for _, at := range condition.FindAllStringIndex(text[:does], -1) {
		part, rest := text[at[0]:at[1]], text[at[1]:]
		if strings.HasPrefix(part, "-p ") && strings.HasPrefix(rest, " -m "+part[3:]) {
			continue
		}
		none := ""
		if part == "%s" {
			none = "%.0s"
		} else if strings.Contains(part, "%") {
			continue
		}
		site := s.site(format, "without "+part+" in", "x")
		s.edit(format, fmt.Sprintf("mutantText(%d, ", site), fmt.Sprintf(", %q)", text[:at[0]]+none+rest))
	}
}

// site adds a site, with a mutant for each way.
func (s *source) site(n ast.Node, kind, ways string) int {
	site := *s.sites
	*s.sites++
	for _, way := range ways {
		k := kind
		if len(ways) > 1 {
			k += map[rune]string{'t': " true", 'f': " false"}[way]
		}
		key := fmt.Sprintf("%s %s: %s: %s", s.path, s.fn, k, strings.Join(strings.Fields(s.of(n)), " "))
		s.keys[key]++
		if n := s.keys[key]; n > 1 {
			key += fmt.Sprintf(" (%d)", n)
		}
		s.mutants = append(s.mutants, mutant{site, byte(way), s.fset.Position(n.Pos()).Line, key})
	}
	return site
}

func (s *source) wrap(site int, with string, n ast.Node) {
	s.edit(n, fmt.Sprintf("%s(%d, ", with, site), ")")
}

func (s *source) when(site int, n ast.Node) {
	s.edit(n, fmt.Sprintf("if mutantDo(%d) { ", site), " }")
}

func (s *source) edit(n ast.Node, before, behind string) {
	s.edits = append(s.edits,
		edit{s.offset(n.Pos()), before, false}, edit{s.offset(n.End()), behind, true})
}

func (s *source) offset(p token.Pos) int { return s.fset.Position(p).Offset }

func (s *source) of(n ast.Node) string { return string(s.text[s.offset(n.Pos()):s.offset(n.End())]) }

// edited puts the edits into the text. Outer ones were made first.
func (s *source) edited() []byte {
	ends := make([]edit, 0, len(s.edits))
	for _, e := range slices.Backward(s.edits) {
		if e.end {
			ends = append(ends, e)
		}
	}
	all := append(ends, slices.DeleteFunc(s.edits, func(e edit) bool { return e.end })...)
	slices.SortStableFunc(all, func(a, b edit) int { return cmp.Compare(a.at, b.at) })
	var out []byte
	last := 0
	for _, e := range all {
		out = append(append(out, s.text[last:e.at]...), e.text...)
		last = e.at
	}
	return append(out, s.text[last:]...)
}
