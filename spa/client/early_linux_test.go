package client_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sallyport/spa/lab"
)

// TestStartedAnew: a gateway that has lost its journal, as by a reboot, accepts no knocks for its window. A command
// that may take longer succeeds once it does; connect and exec wait by default; a command with a shorter timeout
// reports it.
func TestStartedAnew(t *testing.T) {
	g := lab.NewGateway(t, lab.Programs(t), "ssh=tcp/22")
	_, err := lab.EchoServer(g.Host, ":22")
	lab.Must(t, err)
	commands := map[string]struct {
		args      []string
		code      int
		says, not string
	}{
		"observed": {[]string{"open", "ssh", "--source", "observed", "--timeout", "1m"}, 0, "is open on gw", "just started"},
		"stated": {[]string{"open", "ssh", "--source", "192.0.2.2", "--timeout", "1m"}, 0,
			"waiting\nssh (tcp/22) is open on gw", "error"},
		"connect": {[]string{"connect", "ssh", "--source", "192.0.2.2"}, 0,
			"gw has just started and accepts no knocks for another", "error"},
		"exec": {[]string{"exec", "ssh", "--source", "192.0.2.2", "--", "echo", "ran"}, 0, "waiting\nran", "error"},
		"short": {[]string{"open", "ssh", "--source", "192.0.2.2", "--timeout", "5s"}, 3,
			"hint: run it again then, or let it wait: --timeout ", "is open"},
		"silent": {[]string{"open", "ssh", "--source", "observed", "--timeout", "5s"}, 4,
			"started less than 30s ago", "is open on gw"},
	}
	homes := map[string]string{}
	for name := range commands { // each prints it once a second
		homes[name] = filepath.Join(t.TempDir(), name)
		g.Import(homes[name], g.Enrol(name, "ssh"))
	}
	lab.Must(t, os.Remove(filepath.Join(g.Config, "journal")))
	// Longer than the interval after which packets must state when the command began.
	path := filepath.Join(g.Config, "server.toml")
	text := lab.Value(os.ReadFile(path))(t)
	shorter := strings.Replace(string(text), `window = "30s"`, `window = "26s"`, 1)
	if err := os.WriteFile(path, []byte(shorter), 0o640); err != nil || shorter == string(text) {
		t.Fatalf("%v: %s", err, text)
	}
	g.Start()
	var all sync.WaitGroup
	for name, c := range commands {
		all.Go(func() {
			cmd := g.Command("spa-client", c.args...)
			cmd.Args[2] = homes[name]
			out, code := lab.Run(t, g.Client, cmd)
			if code != c.code || !strings.Contains(out, c.says) || strings.Contains(out, c.not) {
				t.Errorf("%s: exit %d, want %d; it said %q", name, code, c.code, out)
			}
		})
	}
	all.Wait()
	if _, verdicts := audited(t, g); verdicts["granted"] != 4 || verdicts["denied"] != 0 {
		t.Errorf("the log has %v", verdicts)
	}
}
