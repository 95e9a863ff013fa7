package main

import (
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestMalformed sends the specification's packets with a valid MAC and malformed content to a server that has their
// keys: authentic, but not spent, not answered, not recorded.
func TestMalformed(t *testing.T) {
	paths, err := filepath.Glob("../../spa/testdata/vectors/malformed-*.txt")
	if err != nil || len(paths) < 10 {
		t.Fatalf("%d vectors: %v", len(paths), err)
	}
	first := vector(t, paths[0])
	g := newGateway(t)
	g.rewrite("gate.key", `key = ".*"`, `key = "`+base64Of(t, first["gate key"])+`"`)
	g.rewrite("server.toml", `server_id = ".*"`, `server_id = "`+first["server id"]+`"`)
	g.rewrite("clients/alice.toml", `(?m)^id = ".*"`, `id = "`+first["client id"]+`"`)
	g.rewrite("clients/alice.toml", `(?m)^key = ".*"`, `key = "`+base64Of(t, first["client key"])+`"`)
	bob := sender(g.enrol("bob", "web"))
	g.serve(":22")
	g.start()
	for _, path := range paths {
		v := vector(t, path)
		if v["client key"] != first["client key"] || v["server id"] != first["server id"] ||
			v["gate key"] != first["gate key"] {
			t.Fatalf("%s has keys of its own", path)
		}
		conn := g.send("192.0.2.2", hexOf(t, v["packet"]))
		g.settle(bob)
		conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		var buf [2048]byte
		if n, err := conn.Read(buf[:]); err == nil {
			t.Errorf("%s: answered with %d bytes", filepath.Base(path), n)
		}
	}
	g.wantDark("192.0.2.2", "192.0.2.1:22", "afterwards")
	g.wantAudited("alice")
	lab.Eventually(t, "the summary to name alice", func() bool {
		return strings.Contains(g.server.log(), "alice: ") && strings.Contains(g.server.log(), "malformed request")
	})
}

// vector reads the first value of each name in a test vector.
func vector(t *testing.T, path string) map[string]string {
	t.Helper()
	data := lab.Value(os.ReadFile(path))(t)
	values := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if _, known := values[name]; ok && !known {
			values[name] = strings.TrimSpace(value)
		}
	}
	return values
}

// rewrite replaces the match in one of the gateway's files.
func (g *gateway) rewrite(file, pattern, text string) {
	g.t.Helper()
	path := filepath.Join(g.dir, file)
	data := lab.Value(os.ReadFile(path))(g.t)
	re := regexp.MustCompile(pattern)
	if !re.Match(data) {
		g.t.Fatalf("%s has nothing like %s:\n%s", file, pattern, data)
	}
	lab.Must(g.t, os.WriteFile(path, re.ReplaceAll(data, []byte(text)), 0o600))
}

func hexOf(t *testing.T, text string) []byte {
	t.Helper()
	data := lab.Value(hex.DecodeString(text))(t)
	return data
}

func base64Of(t *testing.T, text string) string {
	t.Helper()
	return base64.StdEncoding.EncodeToString(hexOf(t, text))
}
