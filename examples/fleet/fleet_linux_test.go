package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/examples/internal/stage"
	"sallyport/spa/fleet/agent"
	"sallyport/spa/lab"
)

// TestMain runs the tests or, under another name, the example itself.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "fleet" {
		main()
		return
	}
	lab.Main(m)
}

// TestFleet runs the example, whose commands are those with which the page sets a fleet up.
func TestFleet(t *testing.T) {
	cmd, files := stage.Rehearsal(t, "fleet")
	told := stage.Told(t, cmd, files,
		"9. Office and bundles are gone",
		"ok   alice    connects to 192.0.2.4:22      connected",
		"ok   bob      knocks at db                  no answer",
		"REFUSED at ",
		"an older bundle than the one in force: its serial is 2, and that of the one in force 3",
		"ok   thief    tries web's key on db's bundle sealed to another",
		"ok   stranger knocks at db                  no answer",
	)
	ran := make(map[string]bool)
	for line := range strings.Lines(told) {
		if _, command, ok := strings.Cut(line, "spa-"); ok {
			ran[plain("spa-"+command)] = true
		}
	}
	commands := 0
	_, setUp, _ := strings.Cut(page(t), "## Set it up\n")
	setUp, _, _ = strings.Cut(setUp, "\n## ")
	for _, block := range regexp.MustCompile("(?s)```(?:sh|console)\n(.*?)```").FindAllStringSubmatch(setUp, -1) {
		for line := range strings.Lines(block[1]) {
			line = strings.TrimPrefix(line, "alice$ ")
			if !strings.HasPrefix(line, "spa-") {
				continue
			}
			commands++
			if !ran[plain(line)] {
				t.Errorf("the example does not run %s", line)
			}
		}
	}
	if commands < 8 {
		t.Errorf("only %d commands on the page", commands)
	}
}

// elsewhere matches what commands of the example have because all of its machines share one directory.
var elsewhere = regexp.MustCompile(` --(config|office|identity|timeout) \S+| > .*|\n$`)

func plain(command string) string { return elsewhere.ReplaceAllString(command, "") }

func page(t *testing.T) string {
	t.Helper()
	return string(lab.Value(os.ReadFile("README.md"))(t))
}

// TestPageSettings: the agent takes the settings on the page, with what is commented out there. The last block is for
// the end of the one for etcd.
func TestPageSettings(t *testing.T) {
	blocks := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(page(t), -1)
	if len(blocks) != 3 {
		t.Fatalf("the page has %d blocks of settings, want 3", len(blocks))
	}
	for i, block := range blocks {
		whole := block[1]
		if i > 1 {
			whole = blocks[1][1] + whole
		}
		for _, text := range []string{whole, regexp.MustCompile(`(?m)^# `).ReplaceAllString(whole, "")} {
			dir := t.TempDir()
			lab.Must(t, os.WriteFile(filepath.Join(dir, agent.FileName), []byte(text), 0o644))
			if c := lab.Value(agent.Load(dir))(t); c.Gateway != "web" {
				t.Errorf("got %+v", c)
			}
		}
	}
}
