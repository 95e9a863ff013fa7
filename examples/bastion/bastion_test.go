// Package bastion holds a bastion's units and its runbook, and proves that they work.
package bastion

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// TestRunbook runs, in a namespace of its own, each command of our programs in README.md, in order.
// What changes the machine (make install, useradd, install, systemctl) is not run.
func TestRunbook(t *testing.T) {
	bin := build(t)
	host := lab.New(t, "bastion")[0]
	work := t.TempDir()
	etc := filepath.Join(t.TempDir(), "spa")
	ran := map[string]int{}
	for _, line := range commands(t, "README.md") {
		fields := strings.Fields(line)
		if !strings.HasPrefix(fields[0], "spa-") {
			continue
		}
		ran[fields[0]]++
		cmd := exec.Command(filepath.Join(bin, fields[0]), append(fields[1:], "--config", etc)...)
		cmd.Dir = work
		out, err := os.Create(filepath.Join(work, "out"))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout, cmd.Stderr = out, out
		if err := host.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if daemon := strings.HasPrefix(line, "spa-server run"); daemon {
			stopWhenReady(t, cmd, out.Name())
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, said(t, out.Name()))
		}
		out.Close()
	}
	if ran["spa-server"] < 4 || ran["spa-keygen"] < 4 {
		t.Errorf("ran %v: the runbook's commands were not found", ran)
	}
}

// stopWhenReady interrupts a server once it says that it is ready.
func stopWhenReady(t *testing.T, cmd *exec.Cmd, out string) {
	t.Helper()
	lab.Eventually(t, 10*time.Second, "the server to be ready", func() bool { return strings.Contains(said(t, out), "msg=ready") })
	cmd.Process.Signal(os.Interrupt)
}

func said(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// commands returns the lines of the page's sh blocks.
func commands(t *testing.T, page string) []string {
	t.Helper()
	file, err := os.Open(page)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var lines []string
	inside := false
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		line, _, _ := strings.Cut(scanner.Text(), "#")
		line = strings.TrimSpace(line)
		switch {
		case line == "```sh":
			inside = true
		case line == "```":
			inside = false
		case inside && line != "":
			lines = append(lines, line)
		}
	}
	return lines
}

func build(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", dir, "sallyport/cmd/...").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return dir
}

// TestUnits: systemd understands the units, and finds the server well confined.
func TestUnits(t *testing.T) {
	analyze := lab.NeedProgram(t, "systemd-analyze", "apt-get install systemd")
	out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=30", "spa-server.service").CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
	for _, unit := range []string{"spa-guard.service", "spa-server.service"} {
		if problems := verify(t, analyze, unit); problems != "" {
			t.Errorf("%s: %s", unit, problems)
		}
	}
}

// verify returns what systemd-analyze says against a unit's own lines.
func verify(t *testing.T, analyze, unit string) string {
	t.Helper()
	out, _ := exec.Command(analyze, "verify", "--man=no", "./"+unit).CombinedOutput()
	var problems []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, unit+":") && !strings.Contains(line, "is not executable") {
			problems = append(problems, strings.TrimSpace(line))
		}
	}
	return strings.Join(problems, "; ")
}
