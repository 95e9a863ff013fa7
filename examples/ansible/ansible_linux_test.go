package ansible

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// A control runs the playbook on this machine, on files in a directory of the test.
type control struct {
	t         *testing.T
	dir       string
	env       []string
	systemctl string // what systemctl was called with
}

func newControl(t *testing.T) *control {
	t.Helper()
	lab.NeedProgram(t, "ansible-playbook", "apt-get install ansible-core")
	c := &control{t: t, dir: t.TempDir()}
	bin := lab.Programs(t)
	c.systemctl = filepath.Join(c.dir, "systemctl.log")
	lab.Must(t, os.WriteFile(filepath.Join(bin, "systemctl"), []byte("#!/bin/sh\necho \"$@\" >>"+c.systemctl+"\n"), 0o755))
	c.env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+c.dir, "LC_ALL=C.UTF-8", "ANSIBLE_NOCOLOR=1",
		"ANSIBLE_PYTHON_INTERPRETER=auto_silent", "ANSIBLE_LOCALHOST_WARNING=False",
		"ANSIBLE_PIPELINING=True")
	return c
}

var recap = regexp.MustCompile(`ok=\d+ +changed=(\d+) +unreachable=0 +failed=0 `)

// run runs the playbook and returns how many tasks have changed something.
func (c *control) run(args ...string) (changed, output string) {
	c.t.Helper()
	cmd := exec.Command("ansible-playbook", append([]string{"-i", "localhost,", "-c", "local", "playbook.yml",
		"-e", "spa_config=" + c.dir + "/spa", "-e", "spa_tokens=" + c.dir + "/tokens"}, args...)...)
	cmd.Env = c.env
	out, err := cmd.CombinedOutput()
	found := recap.FindSubmatch(out)
	if err != nil || found == nil {
		c.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(found[1]), string(out)
}

// files returns the contents of the gateway's files.
func (c *control) files() string {
	c.t.Helper()
	var b strings.Builder
	for _, pattern := range []string{"spa/*.toml", "spa/clients/*", "tokens/*", "systemctl.log"} {
		paths := lab.Value(filepath.Glob(filepath.Join(c.dir, pattern)))(c.t)
		for _, path := range paths {
			b.Write(lab.Value(os.ReadFile(path))(c.t))
		}
	}
	return b.String()
}

// TestPlaybook: the playbook makes a gateway, and changes nothing when it runs again, nor with --check.
func TestPlaybook(t *testing.T) {
	c := newControl(t)
	if changed, out := c.run("--check"); changed == "0" || c.files() != "" {
		t.Errorf("--check, before there is anything: changed %s\n%s", changed, out)
	}
	if changed, out := c.run(); changed != "5" { // files, directory, settings, clients, handler
		t.Errorf("changed %s\n%s", changed, out)
	}
	gateway := lab.Value(config.Load(c.dir + "/spa"))(t)
	clients, problems := keys.LoadRegistry(c.dir + "/spa/clients")
	if len(gateway.Services) != 2 || clients.Len() != 2 || len(problems) > 0 {
		t.Errorf("got %v, %v, %v", gateway.Services, clients.Clients(), problems)
	}
	token := string(lab.Value(os.ReadFile(c.dir + "/tokens/alice"))(t))
	if profile := lab.Value(keys.ParseToken(token))(t); profile.Client != "alice" || len(profile.Services) != 2 {
		t.Errorf("the token is for %s: %v", profile.Client, profile.Services)
	}
	lab.Must(t, os.Remove(c.dir+"/tokens/alice")) // it was handed over
	before := c.files()
	if changed, out := c.run(); changed != "0" || c.files() != before {
		t.Errorf("again: changed %s\n%s", changed, out)
	}
	other := []string{"-e", `{"spa_settings": ["limits.grants=3", "metrics.listen=127.0.0.1:9620"]}`,
		"-e", `{"spa_clients": [{"name": "alice", "allow": "ssh"}, {"name": "bob", "allow": "ssh"}]}`}
	if changed, out := c.run(append(other, "--check")...); changed == "0" || c.files() != before {
		t.Errorf("--check: changed %s\n%s", changed, out)
	}
	if changed, out := c.run(other...); changed != "3" { // settings, clients, handler
		t.Errorf("other settings: changed %s\n%s", changed, out)
	}
	if calls := string(lab.Value(os.ReadFile(c.systemctl))(t)); calls !=
		"try-reload-or-restart spa-server\ntry-restart spa-server\n" {
		t.Errorf("systemctl was called with %s", calls)
	}
}
