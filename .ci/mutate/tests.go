package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// suite is the tests of one package, and what they reach of the packages under mutation.
type suite struct {
	p     *subject
	dir   string
	built string // the directory of its binaries
	tests []*test
}

// test is a top-level test.
type test struct {
	Name string
	Hash string // of its source and of the packages under mutation
	Took time.Duration
	Red  bool   // without a mutant: it is not run
	Seen []byte // a site a byte, see mutantNote
}

func (p *subject) newSuite(dir string) (*suite, error) {
	wanted, err := regexp.Compile(*run)
	skipped, err2 := regexp.Compile(*skip)
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	s := &suite{p: p, dir: dir, built: filepath.Join(p.work, strings.ReplaceAll(p.dir+"-"+dir, "/", "_"))}
	names, err := s.names()
	if err != nil || len(names) == 0 {
		return s, err
	}
	if err := s.build(); err != nil {
		return nil, err
	}
	path := filepath.Join(*cache, strings.ReplaceAll(p.dir+"-"+dir, "/", "_")+".json")
	known := make(map[string]*test)
	if b, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(b, &known); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !wanted.MatchString(name) || skipped.MatchString(name) {
			continue
		}
		t, hash := known[name], names[name]
		if t == nil || t.Hash != hash {
			if t, err = s.learn(name); err != nil {
				return nil, err
			}
			t.Hash = hash
			known[name] = t
			if err := save(path, known); err != nil {
				return nil, err
			}
		}
		if t.Red {
			fmt.Printf("red without a mutant, and not run: %s %s\n", dir, name)
			continue
		}
		s.tests = append(s.tests, t)
	}
	return s, nil
}

func save(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// names returns the tests of the package with what they depend on: a test is learnt again when
// it has changed, or a package under mutation.
func (s *suite) names() (map[string]string, error) {
	out, err := exec.Command("go", "list", "-f", `{{join .TestGoFiles " "}} {{join .XTestGoFiles " "}}`,
		"./"+s.dir).Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	names := make(map[string]string)
	for file := range strings.FieldsSeq(string(out)) {
		text, err := os.ReadFile(filepath.Join(s.dir, file))
		if err != nil {
			return nil, err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, file, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || fn.Name.Name == "TestMain" || !strings.HasPrefix(fn.Name.Name, "Test") &&
				!strings.HasPrefix(fn.Name.Name, "Fuzz") {
				continue
			}
			body := text[fset.Position(fn.Pos()).Offset:fset.Position(fn.End()).Offset]
			sum := sha256.Sum256(slices.Concat(s.p.source, body))
			names[fn.Name.Name] = hex.EncodeToString(sum[:8])
		}
	}
	return names, nil
}

// build builds the test binary, and where tests of another package are run the programs beside it.
func (s *suite) build() error {
	link := "-ldflags=-s -w"
	for _, dir := range s.p.dirs {
		link += " -X " + module + dir + ".mutantNotes=" + s.p.notes()
	}
	flags := []string{"-overlay=" + s.p.overlay(), link}
	if *race {
		flags = append(flags, "-race")
	}
	builds := [][]string{append([]string{"test", "-c", "-vet=off", "-o", filepath.Join(s.built, "tests")},
		append(flags, "./"+s.dir)...)}
	if !slices.Contains(s.p.dirs, s.dir) {
		builds = append(builds, append([]string{"build", "-o", s.built}, append(flags, "./cmd/...")...))
	}
	if err := os.MkdirAll(s.built, 0o755); err != nil {
		return err
	}
	for _, args := range builds {
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("building with switches: %w\n%s", err, out)
		}
	}
	return nil
}

func (p *subject) notes() string {
	return filepath.Join(p.work, strings.ReplaceAll(p.dir, "/", "_")+".notes")
}

// note begins new notes, with a mutant in force or none. Children of tests may be other users.
func (p *subject) note(mutant string) error {
	notes := make([]byte, head+p.sites)
	copy(notes, mutant)
	return errors.Join(os.WriteFile(p.notes(), notes, 0o666), os.Chmod(p.notes(), 0o666))
}

const head = 16 // mutantHead

// learn runs a test without a mutant.
func (s *suite) learn(name string) (*test, error) {
	if err := s.p.note(""); err != nil {
		return nil, err
	}
	start := time.Now()
	green, out := s.test(name, 20*time.Minute)
	if !green {
		fmt.Printf("%s", out)
	}
	seen, err := os.ReadFile(s.p.notes())
	if err != nil {
		return nil, err
	}
	return &test{Name: name, Took: time.Since(start), Red: !green, Seen: seen[head:]}, nil
}

// kill runs tests against a mutant and returns the first that is red, and is again.
func (s *suite) kill(m mutant, tests []*test, spent *time.Duration) (red, why string, err error) {
	for _, t := range tests {
		if *spent += t.Took; *spent > *most {
			break
		}
		for range 2 {
			if err := s.p.note(m.name()); err != nil {
				return "", "", err
			}
			green, out := s.test(t.Name, 3*t.Took+30*time.Second)
			if green {
				red = ""
				break
			}
			red, why = t.Name, string(complaint.Find(out))
			if why == "" {
				break // it crashed, or hung
			}
		}
		if red != "" {
			return red, why, nil
		}
	}
	return "", "", nil
}

// complaint is the first thing that a red test says.
var complaint = regexp.MustCompile(`\w+_test\.go:\d+: .*`)

// test runs one test in a network and process namespace of its own: whatever a mutant does or leaves there
// stays there, and ends with it.
func (s *suite) test(name string, patience time.Duration) (green bool, out []byte) {
	tmp, err := os.MkdirTemp(s.p.work, "t")
	if err != nil {
		return false, []byte(err.Error())
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o777); err != nil {
		return false, []byte(err.Error())
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", `ip link set lo up; "$@"; exit $?`, "sh",
		filepath.Join(s.built, "tests"), "-test.run=^"+name+"$", "-test.failfast")
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "SPA_TEST_BIN="+s.built)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err = cmd.Run()
	return err == nil, b.Bytes()
}

// reaching returns the tests that reach a mutant.
func (s *suite) reaching(m mutant) []*test {
	var tests []*test
	for _, t := range s.tests {
		if m.site < len(t.Seen) && m.reached(t.Seen[m.site]) {
			tests = append(tests, t)
		}
	}
	return tests
}
