package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// measure turns the metrics on.
func (g *gateway) measure(settings string) {
	g.t.Helper()
	g.rewrite("server.toml", `# \[metrics\].*`, "[metrics]\n"+settings)
}

const page = "127.0.0.1:9620"

// dial connects to the page from within the gateway.
func (g *gateway) dial(network, address string) (conn net.Conn, err error) {
	err = g.host.Do(func() error { conn, err = net.Dial(network, address); return err })
	return conn, err
}

// scrape reads the page: the value of each series by its name and labels.
func (g *gateway) scrape(network, address string) map[string]float64 {
	g.t.Helper()
	client := http.Client{Timeout: lab.Patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return g.dial(network, address) }}}
	answer, err := client.Get("http://gateway/metrics")
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.server.log())
	}
	defer answer.Body.Close()
	series := make(map[string]float64)
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		name, value, ok := cutLast(lines.Text(), " ")
		if strings.HasPrefix(name, "#") || !ok {
			continue
		}
		if series[name], err = strconv.ParseFloat(value, 64); err != nil {
			g.t.Fatal(err)
		}
	}
	if answer.StatusCode != http.StatusOK || len(series) == 0 {
		g.t.Fatalf("got %s with %d series", answer.Status, len(series))
	}
	return series
}

func cutLast(text, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(text, sep)
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+len(sep):], true
}

var verdictOf = regexp.MustCompile(`^spa_packets_total\{reason="(.*)",verdict="(.*)"\}$`)

// decidedOn returns the packets of a page as status has them.
func decidedOn(series map[string]float64) map[string]uint64 {
	counts := make(map[string]uint64)
	for name, value := range series {
		m := verdictOf.FindStringSubmatch(name)
		if m == nil || value == 0 {
			continue
		}
		switch m[2] {
		case "unopened", "elsewhere", "unspent":
			counts[m[2]+": "+m[1]] += uint64(value)
		default:
			counts[m[2]] += uint64(value)
		}
	}
	return counts
}

// TestMetrics: the page counts what status and the audit log count, while others read it and never end.
func TestMetrics(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			g := newGateway(t)
			g.guardBy(backend)
			g.measure(`listen = "` + page + `"`)
			g.enrol("bob", "web")
			g.start()
			for i := range 50 {
				conn := lab.Value(g.dial("tcp", page))(t)
				defer conn.Close()
				if i%2 == 0 {
					fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n")
				}
			}
			g.knocks()
			g.wantMetrics("tcp", page)
		})
	}
}

// knocks lets alice send packets of several kinds.
func (g *gateway) knocks() {
	g.t.Helper()
	alice := sender(g.profile())
	good := g.seal(request(), alice)
	g.wantReceipt("192.0.2.2", good, alice, spa.Granted)
	web := request()
	web.Services[0].Name = "web"
	denied := g.seal(web, alice)
	g.wantReceipt("192.0.2.2", denied, alice, spa.ReasonNotAllowed)
	g.send("192.0.2.2", good)              // a copy
	g.send("192.0.2.2", make([]byte, 200)) // noise
	g.mustOpen()
}

// wantMetrics checks the page against status and the audit log.
func (g *gateway) wantMetrics(network, address string) {
	g.t.Helper()
	series, status := g.scrape(network, address), g.status()
	if got := decidedOn(series); fmt.Sprint(got) != fmt.Sprint(status.Decided) {
		g.t.Errorf("packets: the page has %v, status %v", got, status.Decided)
	}
	lines := make(map[string]uint64)
	for _, line := range g.auditLines() {
		if verdict, ok := line["verdict"].(string); ok {
			lines[verdict]++
		}
	}
	for verdict, n := range lines {
		if status.Decided[verdict] != n {
			g.t.Errorf("%d × %s in the audit log, and %d counted", n, verdict, status.Decided[verdict])
		}
		if got := series[`spa_decision_duration_seconds_count{verdict="`+verdict+`"}`]; got != float64(n) {
			g.t.Errorf("%d × %s, and %v were timed", n, verdict, got)
		}
	}
	for name, want := range map[string]float64{
		"spa_grants": float64(status.Grants), "spa_clients": float64(status.Clients), "spa_guard_in_place": 1,
		"spa_keeper_alive": 1, "spa_floor_seconds": 0, "spa_client_files_ignored": 0, "spa_audit_lost_lines_total": 0,
		"spa_capture_received_packets_total": float64(status.Capture.Received),
		"spa_journal_nonces":                 float64(status.Journal.Live), "spa_journal_slots": float64(status.Journal.Room),
	} {
		if got, ok := series[name]; !ok || got != want {
			g.t.Errorf("%s is %v (%v), want %v", name, got, ok, want)
		}
	}
	if series["spa_firewall_duration_seconds_count"] < float64(status.Decided["granted"]) {
		g.t.Errorf("%v changes of the firewall for %d grants", series["spa_firewall_duration_seconds_count"],
			status.Decided["granted"])
	}
	for name := range series {
		if strings.Contains(name, "alice") || strings.Contains(name, "192.0.2") {
			g.t.Errorf("the page says %s", name)
		}
	}
}

// TestMetricsSocket: the same at a Unix socket that a killed server left, for the group of its directory.
func TestMetricsSocket(t *testing.T) {
	lab.NeedRoot(t)
	g := newGateway(t)
	dir := t.TempDir()
	lab.Must(t, errors.Join(os.Chown(dir, 0, 4321), os.Chmod(dir, 0o750)))
	path := filepath.Join(dir, "metrics.sock")
	g.measure(`listen = "unix:` + path + `"`)
	g.start()
	g.server.stop(syscall.SIGKILL)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the killed server has left no socket: %v", err)
	}
	g.start()
	g.knocks()
	g.wantMetrics("unix", path)
	info := lab.Value(os.Stat(path))(t)
	if gid := info.Sys().(*syscall.Stat_t).Gid; gid != 4321 || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket is %v of group %d", info.Mode(), gid)
	}
}

// TestMetricsByClient: with clients = true the page has the clients that have files, and forgets the others.
func TestMetricsByClient(t *testing.T) {
	g := newGateway(t)
	g.measure(`listen = "` + page + "\"\nclients = true")
	g.start()
	g.knocks()
	series := g.scrape("tcp", page)
	for name, want := range map[string]float64{
		`spa_client_packets_total{client="alice",verdict="granted"}`: 2,
		`spa_client_packets_total{client="alice",verdict="denied"}`:  1,
		`spa_client_grants{client="alice"}`:                          1,
	} {
		if series[name] != want {
			t.Errorf("%s is %v, want %v", name, series[name], want)
		}
	}
	lab.Must(t, os.Remove(filepath.Join(g.dir, "clients", "alice.toml")))
	lab.Eventually(t, "alice to be gone from the page", func() bool {
		for name := range g.scrape("tcp", page) {
			if strings.Contains(name, "alice") {
				return false
			}
		}
		return true
	})
}

// TestMetricsOff: by default nothing listens.
func TestMetricsOff(t *testing.T) {
	g := newGateway(t)
	g.start()
	if conn, err := g.dial("tcp", page); err == nil {
		conn.Close()
		t.Error("something listens")
	}
}

// TestMetricsInUse: if another program has the address, the server does not start, and says where that is set and how
// to find the program.
func TestMetricsInUse(t *testing.T) {
	g := newGateway(t)
	g.measure(`listen = "` + page + `"`)
	g.serve(page)
	out, code := g.run(g.host, "spa-server", "run", "--config", g.dir)
	wantSaid(t, out, filepath.Join(g.dir, "server.toml")+": metrics.listen: another program has "+page,
		"ss -tlnp 'sport = :9620'")
	if code != 1 {
		t.Errorf("exit %d", code)
	}
}

// TestMetricsRestart: a reload that changes the page says that it takes a restart.
func TestMetricsRestart(t *testing.T) {
	g := newGateway(t)
	g.start()
	g.measure(`listen = "` + page + "\"\nclients = true")
	g.handOver(filepath.Join(g.dir, "server.toml"))
	out, code := g.run(g.host, "spa-server", "reload", "--config", g.dir)
	wantSaid(t, out, "a restart is needed for metrics.listen, metrics.clients: nothing was changed")
	if code != 1 {
		t.Errorf("exit %d", code)
	}
}
