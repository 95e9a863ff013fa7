package ssh

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// TestSSHFleet: one block is for all gateways of a fleet, and ssh names them in the fleet's domain.
func TestSSHFleet(t *testing.T) {
	lab.NeedRoot(t) // sshd changes its user
	bin := lab.Programs(t)
	for name, flags := range map[string][]string{"joined": nil, "fdpass": {"--fdpass"}} {
		t.Run(name, func(t *testing.T) {
			s := &session{t: t, name: "web7.example.net", dir: t.TempDir(), remote: t.TempDir()}
			s.gateway = lab.NewGateway(t, bin, "ssh=tcp/22")
			s.joinFleet()
			s.sshd()
			s.gateway.Start()
			s.dark()
			s.configure(append([]string{"--fleet", "prod"}, flags...)...)
			t.Run("ssh", s.ssh)
			t.Run("status", s.status)
			t.Run("scp", s.scp)
			t.Run("git", s.git)
			t.Run("names", s.names)
		})
	}
}

// joinFleet makes the gateway web7 of a fleet, and gives the user's machine the token for the fleet. On the wire, such
// a gateway is one with the server id, the gate key and the client keys that are derived for its name.
func (s *session) joinFleet() {
	s.t.Helper()
	fleet := &keys.Profile{Name: "prod", Address: "example.net", KnockPorts: []uint16{62201}, Gate: keys.NewGateKey(),
		Client: "alice", Key: keys.NewKey(), Services: map[string][]string{"ssh": {"tcp/22"}}, Receipts: true,
		Fleet: keys.NewFleetID(), Gateways: map[string]string{"web7": "192.0.2.1"}}
	p := lab.Value(fleet.Gateway("web7"))(s.t)
	settings := lab.Value(os.ReadFile(filepath.Join(s.gateway.Config, "server.toml")))(s.t)
	id := regexp.MustCompile(`(?m)^server_id = .*`)
	client := &keys.Client{Name: "alice", ID: p.ID, Key: p.Key, Allow: []string{"ssh"}}
	for file, text := range map[string][]byte{"gate.key": keys.Gates{Current: p.Gate}.Text(),
		"clients/alice.toml": client.Text(),
		"server.toml":        id.ReplaceAll(settings, []byte("server_id = \""+p.ServerID.String()+"\""))} {
		path := filepath.Join(s.gateway.Config, file)
		lab.Value(os.Stat(path))(s.t) // its owner and mode stay
		lab.Must(s.t, os.WriteFile(path, text, 0o600))
	}
	s.gateway.Import(s.gateway.Home, fleet.Token())
}

// names checks that the name that was typed counts, whatever HostName says, and that names that are no gateway's fail.
func (s *session) names(t *testing.T) {
	out, code := lab.Run(t, s.gateway.Client, s.command("ssh", "-F", s.file("config"), "-o", "HostName=203.0.113.9",
		"-o", "HostKeyAlias=web7.example.net", s.name, "echo hello"))
	if code != 0 || out != "hello\n" {
		t.Errorf("with another HostName: exit %d: %q", code, out)
	}
	for name, want := range map[string]string{
		"a.b.example.net":      "a name may contain only",
		"www.example.net":      "www.example.net",
		"$(touch).example.net": "",
	} {
		out, code := lab.Run(t, s.gateway.Client, s.command("ssh", "-F", s.file("config"), name, "echo hello"))
		if code == 0 || !strings.Contains(out, want) {
			t.Errorf("%s: exit %d: %q", name, code, out)
		}
	}
}
