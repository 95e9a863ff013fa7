package probe

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// TestUnits: systemd accepts the units, and spa-client their command.
func TestUnits(t *testing.T) {
	analyze := lab.NeedProgram(t, "systemd-analyze", "apt-get install systemd")
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", dir, "sallyport/cmd/spa-client").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	service := lab.Value(os.ReadFile("spa-probe@.service"))(t)
	timer := lab.Value(os.ReadFile("spa-probe@.timer"))(t)
	service = []byte(strings.ReplaceAll(string(service), "/usr/local/bin", dir))
	for name, text := range map[string][]byte{"spa-probe@gw.service": service, "spa-probe@gw.timer": timer} {
		lab.Must(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	for _, name := range []string{"spa-probe@gw.service", "spa-probe@gw.timer"} {
		out, err := exec.Command(analyze, "verify", "--man=no", filepath.Join(dir, name)).CombinedOutput()
		if strings.Contains(string(out), "spa-probe") { // it also reports on units of this machine
			t.Errorf("%v\n%s", err, out)
		}
	}
	line := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindSubmatch(service)
	if line == nil {
		t.Fatal("the service has no command")
	}
	args := strings.Fields(strings.NewReplacer("%i", "gw", "/etc/spa-probe", dir,
		"/var/lib/prometheus/node-exporter", dir).Replace(string(line[1])))
	cmd := exec.Command(args[0], args[1:]...)
	out, _ := cmd.CombinedOutput()
	metrics, err := os.ReadFile(filepath.Join(dir, "spa-gw.prom"))
	if cmd.ProcessState.ExitCode() != 3 || err != nil || !strings.Contains(string(metrics), "spa_probe_state{") {
		t.Errorf("without a profile: %s, want exit code 3 and metrics that say so: %v\n%s", cmd.ProcessState, err, out)
	}
}
