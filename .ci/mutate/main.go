// Mutate changes the packet's path in one place after the other, runs the tests that go there, and lists
// the changes that no test notices. It needs root, and util-linux and iproute2.
//
// Conditions are made true and made false, operands of && and || taken out, calls without results,
// locks, and in the guards each rule and each of its conditions. The working tree stays as it is
// (go test -overlay). A condition turned round is noticed by what notices either of the two.
//
// A package and those below its directory internal are one subject: its tests are the tests of their
// behaviour too. DIRECTORY may be the package, for all of them, or one of those below.
package main

// gremlins and go-mutesting change files in place or in copies, know nothing of rules, and have all
// tests of a package compiled and run for each change: here that is minutes for each of thousands.

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

var (
	only   = flag.String("only", "", "take only mutants whose line in the list matches this `regexp`")
	every  = flag.Int("every", 1, "take one mutant of `N`")
	offset = flag.Int("offset", 0, "and begin with this one")
	budget = flag.Duration("for", 24*time.Hour, "begin with no mutant after this time")
	most   = flag.Duration("most", 10*time.Minute, "give up on a mutant after tests that took this time without it")
	beyond = flag.String("beyond", "", "`package` whose tests are run too, with programs that have the "+
		"mutant (./cmd/spa-server)")
	run     = flag.String("run", "", "run only tests that match this `regexp`")
	skip    = flag.String("skip", "^$", "and none that match this one")
	race    = flag.Bool("race", false, "with the race detector, which needs cgo: locks are missed by little else")
	all     = flag.Bool("all", false, "run also those that are in survivors.txt")
	left    = flag.Bool("left", false, "run only those that no test has killed before")
	list    = flag.Bool("list", false, "print the mutants, run nothing")
	verbose = flag.Bool("v", false, "print every mutant, and what killed it")
	cache   = flag.String("cache", "", "`directory` for what tests reach and what they killed (default: of the user)")
)

const (
	survivors = ".ci/mutate/survivors.txt"
	module    = "sallyport/"
)

//go:embed switch.go.txt
var switches string

func main() {
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: mutate [flags] DIRECTORY...")
		flag.PrintDefaults()
	}
	flag.Parse()
	runtime.LockOSThread() // tests are killed with the thread that started them
	if err := mutate(flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func mutate(dirs []string) error {
	start := time.Now()
	if err := os.Chdir(".."); err != nil { // go run -C .ci
		return err
	}
	reasons, err := explained()
	if err != nil {
		return err
	}
	home, err := os.UserCacheDir()
	if *cache == "" && err != nil {
		return err
	}
	if *cache == "" {
		*cache = filepath.Join(home, "sallyport-mutate")
	}
	work, err := os.MkdirTemp("/tmp", "mutate") // short: sockets are made below
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := errors.Join(os.Chmod(work, 0o755), os.MkdirAll(*cache, 0o755)); err != nil {
		return err
	}
	for _, dir := range dirs {
		p, err := newSubject(filepath.Clean(dir), work)
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		if err := p.run(reasons, start); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	return nil
}

// subject is a package under mutation, with those below its directory internal.
type subject struct {
	dir, work string
	dirs      []string // of the packages, dir last
	below     string   // only mutants below this directory are taken
	mutants   []mutant
	sites     int
	source    []byte // all of it, with switches
	suites    []*suite

	counts map[string]int
	killed map[string]string // by which test, from runs before
}

// newSubject writes the packages with a switch at each site, where the overlay has them.
func newSubject(below, work string) (*subject, error) {
	dir, _, _ := strings.Cut(below, "/internal/")
	p := &subject{dir: dir, work: work, below: below, counts: make(map[string]int), killed: make(map[string]string)}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{.Name}} {{join .GoFiles " "}}`,
		"./"+dir, module+dir+"/internal/...").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	overlay := make(map[string]string)
	put := func(path string, text []byte) error {
		from, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		overlay[from] = filepath.Join(work, strings.ReplaceAll(path, "/", "_"))
		return os.WriteFile(overlay[from], text, 0o644)
	}
	names := make(map[string]string) // of the packages, by directory
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		dir := strings.TrimPrefix(words[0], module)
		p.dirs, names[dir] = append(p.dirs, dir), words[1]
		for _, name := range words[2:] {
			path := filepath.Join(dir, name)
			text, mutants, err := instrument(path, &p.sites)
			if err != nil {
				return nil, err
			}
			if err := put(path, text); err != nil {
				return nil, err
			}
			p.mutants = append(p.mutants, mutants...)
			p.source = append(p.source, text...)
		}
	}
	slices.Reverse(p.dirs)
	for dir, name := range names {
		text := strings.NewReplacer("PACKAGE", name, "SITES", fmt.Sprint(p.sites)).Replace(switches)
		if err := put(filepath.Join(dir, "mutant_switch.go"), []byte(text)); err != nil {
			return nil, err
		}
	}
	replace, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		return nil, err
	}
	return p, os.WriteFile(p.overlay(), replace, 0o644)
}

func (p *subject) overlay() string {
	return filepath.Join(p.work, strings.ReplaceAll(p.dir, "/", "_")+".json")
}

func (p *subject) run(reasons map[string]string, start time.Time) error {
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	p.stale(reasons)
	if b, err := os.ReadFile(p.killers()); err == nil {
		if err := json.Unmarshal(b, &p.killed); err != nil {
			return err
		}
	}
	var chosen []mutant
	taken := 0
	for _, m := range p.mutants {
		if !strings.HasPrefix(m.key, p.below+"/") {
			continue
		}
		taken++
		switch _, known := reasons[m.key]; {
		case !pattern.MatchString(m.key):
		case *list:
			fmt.Println(m.key)
		case known && !*all:
			p.counts["explained"]++
		case *left && p.killed[m.key] != "":
			p.counts["killed before"]++
		default:
			chosen = append(chosen, m)
		}
	}
	if *list || len(chosen) == 0 {
		return nil
	}
	dirs := p.dirs
	if *beyond != "" {
		dirs = append(dirs, filepath.Clean(*beyond))
	}
	for _, dir := range dirs {
		s, err := p.newSuite(dir)
		if err != nil {
			return err
		}
		p.suites = append(p.suites, s)
	}
	if err := p.each(chosen, start); err != nil {
		return err
	}
	p.total(taken)
	return save(p.killers(), p.killed)
}

func (p *subject) killers() string {
	return filepath.Join(*cache, strings.ReplaceAll(p.dir, "/", "_")+"-killed.json")
}

// each tries the chosen mutants.
func (p *subject) each(chosen []mutant, start time.Time) error {
	for i, m := range chosen {
		if i%*every != *offset%*every || time.Since(start) > *budget {
			p.counts["not run"]++
			continue
		}
		if err := p.try(m); err != nil {
			return err
		}
	}
	return nil
}

// try runs a mutant against the tests that reach it until one is red.
func (p *subject) try(m mutant) error {
	what, by, because := "not reached", "", ""
	var spent time.Duration
	for _, s := range p.suites {
		tests := s.reaching(m)
		if len(tests) == 0 {
			continue
		}
		p.sort(tests, m)
		what = "SURVIVED"
		red, why, err := s.kill(m, tests, &spent)
		if err != nil {
			return err
		}
		if red != "" {
			what, by, because = "killed", red, why
			break
		}
		if spent > *most {
			what = "OUTLIVED " + most.String()
		}
	}
	p.counts[strings.ToLower(what)]++
	if what == "not reached" && strings.Contains(m.key, ": if false: err != nil") {
		p.counts["of them errors"]++
		what = "error not made"
	}
	if *verbose || what != "killed" && what != "error not made" {
		fmt.Println(what, m.line, m.key, by, because)
	}
	if by != "" {
		p.killed[m.key] = by
	}
	return nil
}

// sort puts first the test that killed the mutant before, then those that are quick for what
// they have killed.
func (p *subject) sort(tests []*test, m mutant) {
	kills := make(map[string]time.Duration)
	for _, name := range p.killed {
		kills[name]++
	}
	cost := func(t *test) time.Duration {
		if t.Name == p.killed[m.key] {
			return 0
		}
		return t.Took / (1 + kills[t.Name])
	}
	slices.SortFunc(tests, func(a, b *test) int { return cmp.Compare(cost(a), cost(b)) })
}

// total prints the figures.
func (p *subject) total(mutants int) {
	parts := []string{fmt.Sprintf("%s: %d mutants", p.below, mutants)}
	for _, what := range slices.Sorted(maps.Keys(p.counts)) {
		parts = append(parts, fmt.Sprintf("%d %s", p.counts[what], what))
	}
	fmt.Println(strings.Join(parts, ", "))
}

// explained reads the mutants that may survive: their lines, and below each group, indented, the reason.
func explained() (map[string]string, error) {
	text, err := os.ReadFile(survivors)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	reasons := make(map[string]string)
	var group []string
	begun := false
	for line := range bytes.Lines(text) {
		trimmed := strings.TrimSpace(string(line))
		indented := line[0] == '\t'
		switch {
		case trimmed == "" || trimmed[0] == '#':
			continue
		case !indented && begun:
			group, begun = nil, false
			fallthrough
		case !indented:
			group = append(group, trimmed)
			continue
		}
		begun = true
		for _, key := range group {
			reasons[key] += trimmed + " "
		}
	}
	return reasons, nil
}

// stale reports what survivors.txt has of the packages that is no mutant any more.
func (p *subject) stale(reasons map[string]string) {
	keys := make(map[string]bool)
	for _, m := range p.mutants {
		keys[m.key] = true
	}
	for _, key := range slices.Sorted(maps.Keys(reasons)) {
		file, _, _ := strings.Cut(key, " ")
		if slices.Contains(p.dirs, filepath.Dir(file)) && !keys[key] {
			fmt.Printf("no mutant of the code as it is: %s\n", key)
		}
	}
}
