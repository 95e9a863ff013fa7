package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// unixPrefix precedes the path of a Unix socket.
const unixPrefix = "unix:"

// Socket returns the path of the Unix socket that the page is on; false if it is on a TCP port, or there is none.
func (m Metrics) Socket() (path string, ok bool) { return strings.CutPrefix(m.Listen, unixPrefix) }

// On reports whether there is a page.
func (m Metrics) On() bool { return m.Listen != "" }

func (l *loader) metrics() {
	l.cfg.Metrics = Metrics{Listen: l.raw.Metrics.Listen, Clients: l.raw.Metrics.Clients}
	if l.cfg.Metrics.On() {
		l.must("metrics.listen", l.cfg.Metrics.check())
	}
	if l.cfg.Metrics.Clients && !l.cfg.Metrics.On() {
		l.must("metrics.clients", errors.New("has no effect without metrics.listen"))
	}
}

// longestSocket is how long the path of a Unix socket can be (unix(7)).
const longestSocket = 107

// check returns why the page cannot be served. The page reveals who knocks when, and whether the guard is in place:
// other hosts may read it only through a proxy that authenticates them.
func (m Metrics) check() error {
	if path, ok := m.Socket(); ok {
		if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) || strings.HasSuffix(path, "/") {
			return errors.New(`should be "unix:" and an absolute path: "unix:/run/spa/metrics.sock"`)
		}
		if len(path) > longestSocket {
			return fmt.Errorf("is too long: the path of a socket has at most %d bytes", longestSocket)
		}
		return nil
	}
	addr, err := netip.ParseAddrPort(m.Listen)
	if err != nil || addr.Port() == 0 || addr.Addr().Zone() != "" {
		return errors.New(`should be a loopback address with a port, "127.0.0.1:9620", or "unix:/run/spa/metrics.sock"`)
	}
	if !addr.Addr().IsLoopback() {
		return fmt.Errorf("%s is not a loopback address, and the page reveals when clients knock and whether "+
			"the guard is in place: listen on 127.0.0.1:%d, and publish it through node_exporter, or through a reverse "+
			"proxy on this host that requires a password or a certificate", addr.Addr(), addr.Port())
	}
	return nil
}

func (m Metrics) write(b *strings.Builder) {
	if m == (Metrics{}) {
		example(b, "[metrics]", "for Prometheus; off by default")
		example(b, `listen = "127.0.0.1:9620"`, `or "unix:/run/spa/metrics.sock"; loopback only`)
		example(b, "clients = true", "count by client too: the page then has their names")
		return
	}
	b.WriteString("\n[metrics]\n")
	setting(b, "listen", quote(m.Listen), `for Prometheus: on loopback, or "unix:/run/spa/metrics.sock"; empty: off`)
	setting(b, "clients", strconv.FormatBool(m.Clients), "count by client too: the page then has their names")
}
