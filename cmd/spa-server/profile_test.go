package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// TestProfile: each key of its profile has an effect on spa-client.
func TestProfile(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	path := filepath.Join(g.home, "hosts", "gw.toml")
	good := lab.Value(os.ReadFile(path))(t)
	nobody := []string{"--timeout", "300ms"}
	for _, test := range []struct {
		name, pattern, text string
		args                []string
		code                int
		says                string
	}{
		{"as it was imported", `^`, ``, nil, 0, `^ssh \(tcp/22\) is open on gw for 192\.0\.2\.2 until `},
		{"version", `version = 1`, `version = 2`, nil, 1, `gw\.toml:\d+: version`},
		{"name", `name = "gw"`, `name = "office"`, nil, 1, `gw\.toml:\d+: name`},
		{"knock_ports", `knock_ports = .*`, `knock_ports = [5000]`, nobody, 4, `UDP port 5000 blocked`},
		{"server_id", `server_id = .*`, `server_id = "` + keys.NewServerID().String() + `"`, nobody, 4, `no answer`},
		{"gate_key", `gate_key = .*`, `gate_key = "` + keys.NewGateKey().Reveal() + `"`, nobody, 4, `no answer`},
		{"id", `\nid = .*`, "\nid = \"" + keys.NewID().String() + `"`, nobody, 4, `no answer`},
		{"key", `\nkey = .*`, "\nkey = \"" + keys.NewKey().Reveal() + `"`, nobody, 4, `no answer`},
		{"client", `client = .*`, `client = "mallory"`, []string{"--dry-run"}, 0, `as its client mallory`},
		{"source", `source = .*`, `source = "192.0.2.5"`, nil, 0, `is open on gw for 192\.0\.2\.5 until `},
		{"receipts", `receipts = true`, `receipts = false`, []string{"--source", "192.0.2.2"}, 0,
			`^ssh \(tcp/22\) is open on gw\n`},
		{"services", `receipts = true([^§]*)ssh = .*`, "receipts = false${1}ssh = [\"tcp/2222\"]", nobody, 4,
			`the port did not accept connections`},
	} {
		t.Run(test.name, func(t *testing.T) {
			re := regexp.MustCompile(test.pattern)
			if !re.Match(good) {
				t.Fatalf("the profile has nothing like %s", test.pattern)
			}
			lab.Must(t, os.WriteFile(path, re.ReplaceAll(good, []byte(test.text)), 0o600))
			out, code := g.open(test.args...)
			if code != test.code || !regexp.MustCompile(test.says).MatchString(out) {
				t.Errorf("exit %d and %q, want %d and %s", code, strings.TrimSpace(out), test.code, test.says)
			}
		})
	}
}
