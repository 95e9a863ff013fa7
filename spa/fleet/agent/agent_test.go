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

func (o offers) Follow(_ context.Context, take func([]byte) error, _ func(error)) {
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

// TestLogsOnce offers the same trouble a thousand times, and then the same bundle.
func TestLogsOnce(t *testing.T) {
	var log bytes.Buffer
	make := bundles(t)
	var o offers
	for range 1000 {
		o = append(o, []byte("noise"))
	}
	good := make("web", 1)
	o = append(o, good, good)
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

// website serves one bundle by HTTPS, and counts how often it was asked for and transferred.
type website struct {
	mu        sync.Mutex
	text      []byte
	requests  int
	transfers int
	tag       string
	status    int
}

func (w *website) set(text []byte, tag string, status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text, w.tag, w.status, w.requests, w.transfers = text, tag, status, 0, 0
}

// counts returns how often it was asked, and how often it transferred the bundle, since it was set.
func (w *website) counts() (requests, transfers int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests, w.transfers
}

func (w *website) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests++
	switch {
	case w.status != 0:
		rw.WriteHeader(w.status)
		rw.Write(w.text)
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
	lab.Eventually(t, "it is asked again", func() bool { requests, _ := site.counts(); return requests > 2 })
	if _, transfers := site.counts(); transfers != 1 {
		t.Errorf("an unchanged bundle was transferred %d times", transfers)
	}

	site.set(make("web", 9), "", http.StatusInternalServerError)
	lab.Eventually(t, "it is asked again", func() bool { requests, _ := site.counts(); return requests > 1 })
	arrives(t, to, first)
	second := make("web", 2)
	site.set(second, `"2"`, 0)
	arrives(t, to, second)
	if _, err := os.Stat(untrusted); err == nil {
		t.Error("takes a bundle from a server with an unknown authority")
	}
}

// TestEndless: a server that sends without end is not heard to the end.
func TestEndless(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		part := make([]byte, 1<<20)
		for range 2 * fleet.MaxFile / len(part) {
			rw.Write(part)
		}
	}))
	defer server.Close()
	if text, _, err := (Web{URL: server.URL, Client: server.Client()}).get(t.Context(), ""); len(text) != fleet.MaxFile+1 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

func TestConfigRefused(t *testing.T) {
	const good = "version = 1\ngateway = \"web\"\nto = \"here\"\nfrom = \"/srv/web.bundle\"\n"
	for change, want := range map[string]string{
		"from = \"http://example.net/web.bundle\"": "from", "from = \"web.bundle\"": "from",
		"from = \"https://\"":                          "from",
		"from = \"https://user:secret@example.net/x\"": "from", "from = \"etcd://127.0.0.1:2379\"": "fleet",
		"every = \"500ms\"": "every", "every = \"often\"": "every", "gateway = \"Web 7\"": "gateway",
		"cert = \"a\"":    "cert",
		"fleet = \"abc\"": "fleet", "colour = \"red\"": "colour", "to": "to: missing", "from": "from: missing",
		"gateway": "gateway: missing", "from = \"https://[\"": "from", "key = \"a\"": "cert",
		"share = \"share.sock\"": "share: needs a store", "taken = \"x\"": "taken: needs a store",
	} {
		key, value, _ := strings.Cut(change, " ")
		var lines []string
		for line := range strings.Lines(good) {
			if !strings.HasPrefix(line, key+" ") {
				lines = append(lines, line)
			}
		}
		if value != "" {
			lines = append(lines, change+"\n")
		}
		dir := t.TempDir()
		lab.Must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(strings.Join(lines, "")), 0o644))
		_, err := Load(dir)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", change, err)
		}
	}
}

// TestConfig: what agent.toml leaves out has a default, and paths are relative to its directory.
func TestConfig(t *testing.T) {
	dir := t.TempDir()
	text := "version = 1\ngateway = \"web\"\nto = \"here\"\nfrom = \"etcd://a:2379,b:2379\"\nfleet = \"" +
		keys.NewFleetID().String() + "\"\nca = \"/etc/ca.pem\"\n"
	lab.Must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(text), 0o644))
	c := lab.Value(Load(dir))(t)
	if c.Every != time.Minute || c.To != filepath.Join(dir, "here") || c.CA != "/etc/ca.pem" || c.Cert != "" ||
		c.Share != "" {
		t.Errorf("got %+v", c)
	}
	text = strings.Replace(text, "to = \"here\"", "share = \"/run/spa-share/share.sock\"", 1)
	lab.Must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(text), 0o644))
	if c := lab.Value(Load(dir))(t); c.To != "" || c.Share != "/run/spa-share/share.sock" {
		t.Errorf("share alone: got %+v", c)
	}
	text = strings.Replace(text, "share = \"/run/spa-share/share.sock\"", "taken = \"fleet.taken\"", 1)
	lab.Must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(text), 0o644))
	if c := lab.Value(Load(dir))(t); c.To != "" || c.Taken != filepath.Join(dir, "fleet.taken") {
		t.Errorf("taken alone: got %+v", c)
	}
}

// TestRedirections: the agent follows redirections on the same server only, encrypted, and not for ever.
func TestRedirections(t *testing.T) {
	text := bundles(t)("web", 1)
	count := 0
	serve := func(rw http.ResponseWriter, r *http.Request) {
		other := r.URL.Query().Get("to")
		to := map[string]string{"/here": "/", "/plain": other, "/other": other}[r.URL.Path]
		if r.URL.Path == "/round" && count < 100 {
			count, to = count+1, "/round"
		}
		if to == "" {
			rw.Write(text)
			return
		}
		http.Redirect(rw, r, to, http.StatusFound)
	}
	plain := httptest.NewServer(http.HandlerFunc(serve))
	defer plain.Close()
	other := httptest.NewTLSServer(http.HandlerFunc(serve)) // with the same certificate
	defer other.Close()
	server := httptest.NewTLSServer(http.HandlerFunc(serve))
	defer server.Close()
	dir := t.TempDir()
	lab.Must(t, os.WriteFile(filepath.Join(dir, "ca.pem"), pemOf(server), 0o644))
	for path, want := range map[string]bool{"/": true, "/here": true, "/plain?to=" + plain.URL: false,
		"/other?to=" + other.URL: false, "/round": false} {
		c := &Config{From: server.URL + path, CA: filepath.Join(dir, "ca.pem"), Every: time.Hour}
		source, closing, err := c.Open()
		lab.Must(t, err)
		got, _, err := source.(Web).get(t.Context(), "")
		if (err == nil) != want || want && !bytes.Equal(got, text) || !want && !strings.Contains(err.Error(), "302") {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
		lab.Must(t, closing())
	}
}

// TestCertificates: files that have no certificate, or not the key of it, are refused before the agent connects.
func TestCertificates(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	dir := t.TempDir()
	cert, none := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "none.pem")
	lab.Must(t, os.WriteFile(cert, pemOf(server), 0o644))
	lab.Must(t, os.WriteFile(none, []byte("nothing"), 0o644))
	for _, files := range [][3]string{{none, "", ""}, {dir + "/missing", "", ""}, {cert, cert, cert}, {"", none, none}} {
		if _, err := TLS(files[0], files[1], files[2]); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%q: %v", files, err)
		}
	}
}

func pemOf(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}
