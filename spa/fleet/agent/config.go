package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
	"sallyport/spa/fleet/etcd"
)

// FileName is the name of the agent's configuration in its directory.
const FileName = "agent.toml"

const (
	maxFile   = 64 << 10
	stalls    = time.Minute // for one transfer
	normEvery = time.Minute
)

type rawConfig struct {
	Version int64  `toml:"version"`
	Gateway string `toml:"gateway"`
	From    string `toml:"from"`
	To      string `toml:"to"`
	Fleet   string `toml:"fleet"`
	Every   string `toml:"every"`
	CA      string `toml:"ca"`
	Cert    string `toml:"cert"`
	Key     string `toml:"key"`
	Share   string `toml:"share"`
	Taken   string `toml:"taken"`
}

// Config is agent.toml.
type Config struct {
	Gateway string // its name in the fleet
	From    string // a path, "https://…", or "etcd://HOST:PORT,HOST:PORT"
	To      string // the file in which spa-server looks: bundle in [fleet] of server.toml; empty: no bundle is fetched
	Fleet   keys.FleetID
	Every   time.Duration // between two looks at a file or a web server
	CA      string        // a file with the certificates that sign the server's; empty: those of the system
	Cert    string        // a file with the agent's own certificate; empty: none
	Key     string        // and one with its key
	Share   string        // the socket of a gateway that shares its address; empty: it does not
	Taken   string        // the gateway's report for the office: taken in [fleet] of server.toml; empty: it is not carried
}

// Load reads agent.toml in dir. Paths in it are relative to dir.
func Load(dir string) (*Config, error) {
	path := filepath.Join(dir, FileName)
	text, err := place.ReadFile(path, maxFile)
	if err != nil {
		return nil, err
	}
	var raw rawConfig
	d, err := strict.Decode(path, text, &raw)
	if err != nil {
		return nil, err
	}
	c := &Config{Gateway: raw.Gateway, From: raw.From, To: below(dir, raw.To), Every: normEvery,
		CA: below(dir, raw.CA), Cert: below(dir, raw.Cert), Key: below(dir, raw.Key), Share: below(dir, raw.Share),
		Taken: below(dir, raw.Taken)}
	var problems []error
	must := func(key string, err error) {
		if err != nil {
			problems = append(problems, d.Problem(key, "%s", err))
		}
	}
	for _, key := range []string{"gateway", "from", "to"} {
		if !d.Has(key) && (key != "to" || raw.Share == "" && raw.Taken == "") {
			must(key, errors.New("missing"))
		}
	}
	for key, value := range map[string]string{"share": raw.Share, "taken": raw.Taken} {
		if value != "" && !strings.HasPrefix(raw.From, "etcd:") {
			must(key, errors.New(`needs a store: from = "etcd://HOST:PORT,HOST:PORT"`))
		}
	}
	must("gateway", service.ValidName(raw.Gateway))
	if raw.Every != "" {
		c.Every, err = service.ParseDuration(raw.Every)
		must("every", err)
	}
	if strings.HasPrefix(raw.From, "etcd:") || raw.Fleet != "" {
		c.Fleet, err = keys.ParseFleetID(raw.Fleet)
		must("fleet", err)
	}
	if (raw.Cert == "") != (raw.Key == "") {
		must("cert", errors.New("cert and key need each other"))
	}
	must("from", c.validFrom())
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return c, nil
}

func below(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// validFrom refuses ways that an attacker on the path could change without being noticed: an older bundle is a way to
// keep a revoked client.
func (c *Config) validFrom() error {
	u, err := url.Parse(c.From)
	switch {
	case strings.HasPrefix(c.From, "etcd://"):
		return nil
	case err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil:
		return nil
	case filepath.IsAbs(c.From):
		return nil
	}
	return errors.New(`must be an absolute path, "https://HOST/PATH" or "etcd://HOST:PORT,HOST:PORT"`)
}

// Open opens the source. Close ends it.
func (c *Config) Open() (s Source, closing func() error, err error) {
	if filepath.IsAbs(c.From) {
		return File{c.From, c.Every}, func() error { return nil }, nil
	}
	secure, err := c.tls()
	if err != nil {
		return nil, nil, err
	}
	if !strings.HasPrefix(c.From, "etcd://") {
		client := &http.Client{Timeout: stalls, Transport: &http.Transport{TLSClientConfig: secure,
			Proxy: http.ProxyFromEnvironment}, CheckRedirect: sameHost}
		return Web{c.From, client, c.Every}, func() error { client.CloseIdleConnections(); return nil }, nil
	}
	store, err := c.store()
	if err != nil {
		return nil, nil, err
	}
	return stored{store, c.Gateway}, store.Close, nil
}

// OpenBridge opens the way between the gateway's server and the store. Close ends it.
func (c *Config) OpenBridge(log *slog.Logger) (b *Bridge, closing func() error, err error) {
	store, err := c.store()
	if err != nil {
		return nil, nil, err
	}
	return &Bridge{Socket: c.Share, Gateway: c.Gateway, Fleet: c.Fleet, Store: store, Log: log}, store.Close, nil
}

// OpenReporter opens the way of the gateway's report to the store. Close ends it.
func (c *Config) OpenReporter(log *slog.Logger) (r *Reporter, closing func() error, err error) {
	store, err := c.store()
	if err != nil {
		return nil, nil, err
	}
	return &Reporter{File: c.Taken, Gateway: c.Gateway, Fleet: c.Fleet, Store: store, Log: log}, store.Close, nil
}

func (c *Config) store() (*etcd.Store, error) {
	secure, err := c.tls()
	if err != nil {
		return nil, err
	}
	hosts := strings.TrimPrefix(c.From, "etcd://")
	return etcd.Open(etcd.Config{Endpoints: Endpoints(hosts), TLS: secure, Fleet: c.Fleet})
}

// Endpoints returns the addresses in HOST:PORT,HOST:PORT as etcd's client takes them.
func Endpoints(hosts string) []string {
	list := strings.Split(hosts, ",")
	for i, host := range list {
		list[i] = "https://" + host
	}
	return list
}

// sameHost refuses redirections to another host or without encryption.
func sameHost(next *http.Request, via []*http.Request) error {
	if len(via) > 3 || next.URL.Scheme != "https" || next.URL.Host != via[0].URL.Host {
		return http.ErrUseLastResponse
	}
	return nil
}

func (c *Config) tls() (*tls.Config, error) { return TLS(c.CA, c.Cert, c.Key) }

// TLS returns the settings for a connection to a server whose certificate is signed by one in the file ca, or, if that
// is empty, by one that the system trusts. The files cert and key hold the own certificate, if they are not empty.
func TLS(ca, cert, key string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		text, err := place.ReadFile(ca, maxFile)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(text) {
			return nil, &place.FileError{File: ca, Text: "has no certificate in PEM"}
		}
	}
	if cert != "" {
		// Read at each connection: certificates end, and are replaced while the agent runs.
		t.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			return nil, fmt.Errorf("%s: %w", cert, err)
		}
	}
	return t, nil
}

// stored is the bundle of one gateway in etcd.
type stored struct {
	store   *etcd.Store
	gateway string
}

// Follow implements Source.
func (s stored) Follow(ctx context.Context, take func([]byte) error, trouble func(error)) {
	s.store.Follow(ctx, s.gateway, take, trouble)
}
