package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/spa/fleet"
	"sallyport/spa/lab"
)

// bundles returns a function that makes bundles of one office.
func bundles(t testing.TB) func(gateway string, serial int64) []byte {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	seal := fleet.Seal{Fleet: keys.NewFleetID(), Key: private}
	to := lab.Value(age.GenerateHybridIdentity())(t).Recipient()
	return func(gateway string, serial int64) []byte {
		c := &fleet.Contents{Site: gateway, Gates: keys.Gates{Current: keys.NewGateKey()}}
		return lab.Value(seal.Seal(gateway, to, serial, time.Now(), c))(t).Bytes()
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// offers is a source that offers one thing after another.
type offers [][]byte

func (o offers) Follow(_ context.Context, take func([]byte), _ func(error)) {
	for _, text := range o {
		take(text)
	}
}

// TestTakes offers everything that a source may have, in each order of two. What is in place afterwards is the last
// whole bundle of this gateway, if there was one, and never anything else.
func TestTakes(t *testing.T) {
	make := bundles(t)
	second := make("web", 2)
	all := map[string][]byte{
		"first": make("web", 1), "second": second, "tenth": make("web", 10), "another's": make("db", 11),
		"nothing": nil, "cut": second[:len(second)-1], "longer": append(bytes.Clone(second), 0),
		"noise": bytes.Repeat([]byte("x"), 3000),
	}
	whole := map[string]bool{"first": true, "second": true, "tenth": true}
	for a := range all {
		for b := range all {
			to := filepath.Join(t.TempDir(), "bundle")
			agent := &Agent{Source: offers{all[a], all[b]}, Gateway: "web", To: to, Log: discard()}
			agent.Run(t.Context())
			var want []byte
			for _, name := range []string{a, b} {
				if whole[name] {
					want = all[name]
				}
			}
			if got, _ := os.ReadFile(to); !bytes.Equal(got, want) {
				t.Errorf("%s, then %s: %d bytes in place, want %d", a, b, len(got), len(want))
			}
		}
	}
}

// TestLogsOnce offers the same trouble a thousand times.
func TestLogsOnce(t *testing.T) {
	var log bytes.Buffer
	make := bundles(t)
	var o offers
	for range 1000 {
		o = append(o, []byte("noise"))
	}
	o = append(o, make("web", 1))
	to := filepath.Join(t.TempDir(), "bundle")
	(&Agent{Source: o, Gateway: "web", To: to, Log: slog.New(slog.NewTextHandler(&log, nil))}).Run(t.Context())
	if n := strings.Count(log.String(), "\n"); n != 3 {
		t.Errorf("%d lines for trouble, a bundle, and the end of trouble:\n%s", n, log.String())
	}
}

// run runs an agent as configured, until the test ends.
func run(t testing.TB, config string) (to string) {
	t.Helper()
	dir := t.TempDir()
	const start = "version = 1\ngateway = \"web\"\nto = \"here\"\nevery = \"1s\"\n"
	lab.Must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(start+config), 0o644))
	c := lab.Value(Load(dir))(t)
	source, closing, err := c.Open()
	lab.Must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		(&Agent{Source: source, Gateway: c.Gateway, To: c.To, Log: discard()}).Run(ctx)
	})
	t.Cleanup(func() { cancel(); running.Wait(); lab.Must(t, closing()) })
	return c.To
}

func arrives(t testing.TB, to string, want []byte) {
	t.Helper()
	lab.Eventually(t, "the bundle is in place", func() bool {
		got, _ := os.ReadFile(to)
		return bytes.Equal(got, want)
	})
}

func TestFile(t *testing.T) {
	make := bundles(t)
	from := filepath.Join(t.TempDir(), "web.bundle")
	to := run(t, "from = \""+from+"\"\n")
	for serial := range int64(3) { // not there at first, then replaced
		text := make("web", serial+1)
		lab.Must(t, os.WriteFile(from+".new", text, 0o644))
		lab.Must(t, os.Rename(from+".new", from))
		arrives(t, to, text)
	}
}

// website serves one bundle by HTTPS, and counts how often it was transferred.
type website struct {
	mu        sync.Mutex
	text      []byte
	transfers int
	tag       string
	status    int
}

func (w *website) set(text []byte, tag string, status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text, w.tag, w.status, w.transfers = text, tag, status, 0
}

func (w *website) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case r.URL.Path == "/elsewhere":
		http.Redirect(rw, r, "http://"+r.Host+"/web.bundle", http.StatusFound)
	case w.status != 0:
		rw.WriteHeader(w.status)
	case w.tag != "" && r.Header.Get("If-None-Match") == w.tag:
		rw.WriteHeader(http.StatusNotModified)
	default:
		w.transfers++
		rw.Header().Set("ETag", w.tag)
		rw.Write(w.text)
	}
}

func TestWeb(t *testing.T) {
	make := bundles(t)
	site := new(website)
	server := httptest.NewTLSServer(site)
	defer server.Close()
	server.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelError)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	lab.Must(t, os.WriteFile(ca, pemOf(server), 0o644))

	first := make("web", 1)
	site.set(first, `"1"`, 0)
	to := run(t, "from = \""+server.URL+"/web.bundle\"\nca = \""+ca+"\"\n")
	arrives(t, to, first)
	untrusted := run(t, "from = \""+server.URL+"/web.bundle\"\n")
	insecure := run(t, "from = \""+server.URL+"/elsewhere\"\nca = \""+ca+"\"\n")

	site.set([]byte("gone"), "", http.StatusInternalServerError)
	second := make("web", 2)
	site.set(second, `"2"`, 0)
	arrives(t, to, second)
	lab.Eventually(t, "an unchanged bundle is not transferred again", func() bool {
		site.mu.Lock()
		defer site.mu.Unlock()
		return site.transfers == 1
	})
	for what, file := range map[string]string{"an unknown authority": untrusted, "a redirection to http": insecure} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("takes a bundle by %s", what)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	const good = "version = 1\ngateway = \"web\"\nto = \"here\"\nfrom = \"/srv/web.bundle\"\n"
	for change, want := range map[string]string{
		"from = \"http://example.net/web.bundle\"": "from", "from = \"web.bundle\"": "from",
		"from = \"https://\"": "from", "from = \"https://user:secret@example.net/x\"": "from",
		"from = \"etcd://127.0.0.1:2379\"": "fleet", "every = \"500ms\"": "every", "every = \"often\"": "every",
		"gateway = \"Web 7\"": "gateway", "cert = \"a\"": "cert", "fleet = \"abc\"": "fleet",
		"colour = \"red\"": "colour",
	} {
		key, _, _ := strings.Cut(change, " ")
		var lines []string
		for line := range strings.Lines(good) {
			if !strings.HasPrefix(line, key+" ") {
				lines = append(lines, line)
			}
		}
		dir := t.TempDir()
		lab.Must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(strings.Join(lines, "")+change+"\n"), 0o644))
		_, err := Load(dir)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", change, err)
		}
	}
}
func pemOf(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}
