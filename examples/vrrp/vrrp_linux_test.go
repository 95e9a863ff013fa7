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
	if filepath.Base(os.Args[0]) == "vrrp" {
		main()
		return
	}
	lab.Main(m)
}

// TestVrrp runs the example.
func TestVrrp(t *testing.T) {
	lab.NeedProgram(t, "keepalived", "apt-get install keepalived")
	lab.NeedProgram(t, "etcd", "apt-get install etcd-server")
	lab.NeedRoot(t)
	cmd, files := stage.Rehearsal(t, "vrrp")
	told := stage.Told(t, cmd, files,
		"ok   keepalived gives 192.0.2.100 to        lb1",
		"ok   keepalived gives 192.0.2.100 to        lb2",
		"ok   alice    connects to 192.0.2.100:22    connected",
		"ok   eve      connects to 192.0.2.100:22    no answer",
		" spent elsewhere, ",
		"ok   bob      connects to 192.0.2.1:22      connected",
		"ok   alice    connects to 192.0.2.2:22      no answer",
		"ok   keepalived takes 192.0.2.100 from      lb1",
	)
	_, lost, _ := strings.Cut(told, "\n5. ")
	lost, _, _ = strings.Cut(lost, "\n6. ")
	if !strings.Contains(lost, "192.0.2.100:22    connected") || strings.Contains(lost, "spa-client") {
		t.Errorf("alice knocks again when lb1 has lost power:\n%s", lost)
	}
}

// TestPageSettings: the agent takes the settings on the page.
func TestPageSettings(t *testing.T) {
	page := string(lab.Value(os.ReadFile("README.md"))(t))
	block := regexp.MustCompile("(?s)```toml\n(.*?)```").FindStringSubmatch(page)
	if block == nil {
		t.Fatal("the page has no settings")
	}
	dir := t.TempDir()
	lab.Must(t, os.WriteFile(filepath.Join(dir, agent.FileName), []byte(block[1]), 0o644))
	if c := lab.Value(agent.Load(dir))(t); c.Gateway != "lb1" || c.Share != "/run/spa-share/share.sock" {
		t.Errorf("got %+v", c)
	}
}
