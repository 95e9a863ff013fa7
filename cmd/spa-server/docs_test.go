package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestPromisesNameTheirTests: each test that SECURITY.md names exists, and a promise names the right package.
func TestPromisesNameTheirTests(t *testing.T) {
	page := lab.Value(os.ReadFile("../../SECURITY.md"))(t)
	there := declaredTests(t)
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(page, -1)
	if len(named) < 20 {
		t.Errorf("SECURITY.md names %d tests: were they found?", len(named))
	}
	for _, match := range named {
		if !there[string(match[1])] {
			t.Errorf("SECURITY.md names %s, which is not there", match[1])
		}
	}
	for _, row := range regexp.MustCompile(`(?m)^\| .*\| (.*(?:Test|Fuzz).*) \|$`).FindAllStringSubmatch(string(page),
		-1) {
		checkPackages(t, there, row[1])
	}
}

// checkPackages parses a cell such as "`TestA`, `TestB` (keys), `TestC` (firewall)": each test is in the packages named
// after it.
func checkPackages(t *testing.T, there map[string]bool, cell string) {
	t.Helper()
	for tests, rest := cell, ""; tests != ""; tests = rest {
		var packages string
		tests, rest, _ = strings.Cut(tests, "(")
		packages, rest, _ = strings.Cut(rest, ")")
		for _, test := range regexp.MustCompile(`(?:Test|Fuzz)\w+`).FindAllString(tests, -1) {
			for pkg := range strings.SplitSeq(packages, ", ") {
				if !there[pkg+"."+test] {
					t.Errorf("SECURITY.md names %s, which is not in package %q: %s", test, pkg, cell)
				}
			}
		}
	}
}

// settings returns the settings on a page.
func settings(t *testing.T, page string) [][][]byte {
	t.Helper()
	return regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllSubmatch(lab.Value(os.ReadFile(page))(t), -1)
}

// TestPageSettings: the settings on the gateway's page, of server.toml and of a client's file, and those on the
// runbook's are valid.
func TestPageSettings(t *testing.T) {
	blocks := settings(t, "../../examples/gateway/README.md")
	if len(blocks) != 2 {
		t.Fatalf("examples/gateway/README.md has %d blocks of settings, want server.toml's and a client's", len(blocks))
	}
	dir := t.TempDir()
	head := fmt.Sprintf("version = 1\nname = \"gw\"\naddress = \"gw.example.net\"\nserver_id = %q\n", keys.NewServerID())
	writeFile(t, filepath.Join(dir, config.FileName), head+string(blocks[0][1]))
	c := lab.Value(config.Load(dir))(t)
	if len(c.Services) != 2 || !c.Services[0].Masquerade || c.Services[1].OnExpiry != "cut" ||
		c.Firewall.Closed != "reject" {
		t.Errorf("got %+v", c)
	}
	for _, block := range settings(t, "../../examples/bastion/README.md") {
		writeFile(t, filepath.Join(dir, config.FileName), head+string(block[1]))
		lab.Value(config.Load(dir))(t)
	}
	client := filepath.Join(dir, "alice.toml")
	writeFile(t, client, fmt.Sprintf("version = 1\nid = %q\nkey = %q\n%s", keys.NewID(),
		keys.NewKey().Reveal(), blocks[1][1]))
	if _, err := keys.ReadClient(client); err != nil {
		t.Error(err)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	lab.Must(t, os.WriteFile(path, []byte(text), 0o600))
}
