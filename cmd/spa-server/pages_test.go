package main

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// pages returns the text of all pages, by their paths.
func pages(t *testing.T) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	for _, pattern := range []string{"../../*.md", "../../spa/*.md", "../../examples/*/README.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("no pages at %s: %v", pattern, err)
		}
		for _, path := range paths {
			text := lab.Value(os.ReadFile(path))(t)
			texts[path] = string(text)
		}
	}
	return texts
}

var (
	links    = regexp.MustCompile(`\]\(([^)#:]*)(#[^)]*)?\)`)
	headings = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noAnchor = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	fenced   = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```")
)

// TestLinks: every link between pages leads to an existing file, and to one of its headings.
func TestLinks(t *testing.T) {
	all := pages(t)
	for path, text := range all {
		for _, link := range links.FindAllStringSubmatch(text, -1) {
			target := path
			if link[1] != "" {
				target = filepath.Join(filepath.Dir(path), link[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			if link[2] != "" && !slices.Contains(anchors(all[target]), link[2]) {
				t.Errorf("%s: %s has no heading %s", path, target, link[2])
			}
		}
	}
}

// anchors returns the anchors of a page's headings.
func anchors(text string) []string {
	var names []string
	for _, heading := range headings.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		name := noAnchor.ReplaceAllString(strings.ToLower(heading[1]), "")
		names = append(names, "#"+strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// TestReadmeIsShort: at most 800 words, sentences of 25 words and lines of 100 columns.
func TestReadmeIsShort(t *testing.T) {
	text := pages(t)["../../README.md"]
	if words := len(strings.Fields(text)); words > 800 {
		t.Errorf("README.md has %d words", words)
	}
	for n, line := range strings.Split(text, "\n") {
		if columns := len([]rune(line)); columns > 100 {
			t.Errorf("README.md:%d has %d columns", n+1, columns)
		}
	}
	prose := regexp.MustCompile(`(?m)^(?:#.*|\|.*)$`).ReplaceAllString(fenced.ReplaceAllString(text, "\n\n"), "")
	for _, sentence := range regexp.MustCompile(`[.?!:]\**\s|\n\n|\n- `).Split(prose, -1) {
		if words := len(strings.Fields(sentence)); words > 25 {
			t.Errorf("README.md: a sentence of %d words: %s", words, sentence)
		}
	}
}

// TestPageCommands: the programs know each command and flag in the code blocks of a page.
func TestPageCommands(t *testing.T) {
	bin := lab.Programs(t)
	help := make(map[string]string)
	ran := regexp.MustCompile(`\b(spa-(?:server|client|keygen|fleet)) +` +
		`((?:(?:admin|client|gateway) +)?[a-z][a-z-]*)([^\n|;]*)`)
	comments := regexp.MustCompile(`(?m)(?:^|\s)#.*$`)
	indented := regexp.MustCompile(`(?m)^    .*$`)
	found := 0
	for path, text := range pages(t) {
		blocks := indented.FindAllString(fenced.ReplaceAllString(text, ""), -1)
		for _, block := range fenced.FindAllStringSubmatch(text, -1) {
			blocks = append(blocks, block[2])
		}
		commands := comments.ReplaceAllString(strings.Join(blocks, "\n"), "")
		for _, command := range ran.FindAllStringSubmatch(commands, -1) {
			found++
			name := command[1] + " " + command[2]
			if help[name] == "" {
				words := append(strings.Fields(command[2]), "--help")
				out, err := exec.Command(filepath.Join(bin, command[1]), words...).CombinedOutput()
				if err != nil || !strings.Contains(string(out), "\n  "+name) {
					t.Errorf("%s: there is no command %s", path, name)
				}
				help[name] = string(out)
			}
			flags, _, _ := strings.Cut(command[3], " -- ")
			for _, flag := range regexp.MustCompile(`--[a-z][a-z-]*`).FindAllString(flags, -1) {
				if !regexp.MustCompile(regexp.QuoteMeta(flag) + `\b`).MatchString(help[name]) {
					t.Errorf("%s: %s has no flag %s", path, name, flag)
				}
			}
		}
	}
	if found < 60 {
		t.Errorf("the pages run %d commands: were they found?", found)
	}
}

// TestMap: CONTRIBUTING.md has a line for each package.
func TestMap(t *testing.T) {
	text := pages(t)["../../CONTRIBUTING.md"]
	found := 0
	for _, top := range []string{"cmd", "firewall", "keys", "spa"} {
		lab.Must(t, filepath.WalkDir(filepath.Join("../..", top), func(path string, entry fs.DirEntry, err error) error {
			if sources, _ := filepath.Glob(filepath.Join(path, "*.go")); err != nil || !entry.IsDir() || len(sources) == 0 {
				return err
			}
			found++
			if pkg, _ := filepath.Rel("../..", path); !strings.Contains(text, "`"+filepath.ToSlash(pkg)+"`") {
				t.Errorf("CONTRIBUTING.md does not say what package %s is for", pkg)
			}
			return nil
		}))
	}
	if found < 20 {
		t.Errorf("there are %d packages: were they found?", found)
	}
}

// pathInText finds what stands between backquotes and looks like a file or a package of this repository.
var pathInText = regexp.MustCompile("`((?:cmd|firewall|keys|spa|examples)/[\\w./-]+)`")

// TestPathsExist: a path that a page for developers names exists.
func TestPathsExist(t *testing.T) {
	found := 0
	for name, text := range pages(t) {
		for _, m := range pathInText.FindAllStringSubmatch(text, -1) {
			found++
			if _, err := os.Stat(filepath.Join("../..", m[1])); err != nil {
				t.Errorf("%s names %s: %v", name, m[1], err)
			}
		}
	}
	if found < 20 {
		t.Errorf("the pages name %d paths: were they found?", found)
	}
}
