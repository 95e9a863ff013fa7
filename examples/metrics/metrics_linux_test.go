package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

func read(t *testing.T, name string) string {
	t.Helper()
	text := lab.Value(os.ReadFile(name))(t)
	return string(text)
}

// TestPromtool: the real tool accepts rules and configuration, and its test raises each alert.
func TestPromtool(t *testing.T) {
	tool := lab.NeedProgram(t, "promtool", "apt-get install prometheus")
	for _, args := range [][]string{{"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"},
		{"check", "config", "prometheus.yml"}} {
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// alerts returns the names of all alerts.
func alerts(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(read(t, "rules.yml"), -1) {
		names = append(names, m[1])
	}
	if len(names) < 10 {
		t.Fatalf("%d alerts: were they found?", len(names))
	}
	return names
}

// TestEveryAlert: each alert is raised in rules_test.yml, and the page says what it means and what helps.
func TestEveryAlert(t *testing.T) {
	raised, page := read(t, "rules_test.yml"), read(t, "README.md")
	for _, name := range alerts(t) {
		if !strings.Contains(raised, `alertname="`+name+`"`) {
			t.Errorf("no test raises %s", name)
		}
		if !strings.Contains(page, "\n| "+name+" | ") {
			t.Errorf("the page does not explain %s", name)
		}
	}
}

// gateway is a gateway with metrics, and the real Prometheus beside its server.
type gateway struct {
	*lab.Gateway
	t    *testing.T
	http http.Client
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{Gateway: lab.NewGateway(t, lab.Programs(t), "ssh=tcp/22"), t: t}
	g.http = http.Client{Timeout: lab.Patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = g.Host.Do(func() error { conn, err = net.Dial(network, address); return err })
			return conn, err
		}}}
	path := filepath.Join(g.Config, "server.toml")
	settings := regexp.MustCompile("(?s)```toml\n(.*?)```").FindStringSubmatch(read(t, "README.md"))[1]
	text := strings.Replace(read(t, path), "\n[limits]", "\n"+settings+"\n[limits]", 1)
	lab.Must(t, os.WriteFile(path, []byte(text), 0o640))
	g.Start()
	return g
}

func (g *gateway) get(url string) string {
	g.t.Helper()
	answer, err := g.http.Get(url)
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.Log())
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		g.t.Fatalf("%s: %s, %v: %s", url, answer.Status, err, body)
	}
	return string(body)
}

// prometheus runs the real Prometheus with this directory's configuration, except that it scrapes each second.
func (g *gateway) prometheus() {
	g.t.Helper()
	program := lab.NeedProgram(g.t, "prometheus", "apt-get install prometheus")
	dir := g.t.TempDir()
	config := strings.Replace(read(g.t, "prometheus.yml"), "scrape_interval: 15s",
		"scrape_interval: 1s\n  evaluation_interval: 1s", 1)
	for name, text := range map[string]string{"prometheus.yml": config, "rules.yml": read(g.t, "rules.yml")} {
		lab.Must(g.t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	cmd := exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:9090")
	log := lab.Value(os.Create(filepath.Join(dir, "log")))(g.t)
	cmd.Stdout, cmd.Stderr = log, log
	lab.Must(g.t, g.Host.Start(cmd))
	g.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
		if g.t.Failed() {
			g.t.Log(read(g.t, log.Name()))
		}
	})
	lab.Eventually(g.t, "Prometheus to be ready", func() bool {
		answer, err := g.http.Get("http://127.0.0.1:9090/-/ready")
		if err == nil {
			answer.Body.Close()
		}
		return err == nil && answer.StatusCode == http.StatusOK
	})
}

// query returns how many series a query has.
func (g *gateway) query(expr string) int {
	g.t.Helper()
	var answer struct {
		Data struct{ Result []any }
	}
	body := g.get("http://127.0.0.1:9090/api/v1/query?query=" + url.QueryEscape(expr))
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		g.t.Fatalf("%s: %v: %s", expr, err, body)
	}
	return len(answer.Data.Result)
}

// knock opens and closes ssh, and sends noise.
func (g *gateway) knock() {
	g.t.Helper()
	for _, command := range []string{"open", "close"} {
		out, code := lab.Run(g.t, g.Client, g.Command("spa-client", command, "ssh", "--host", "gw", "--timeout",
			lab.Patience.String()))
		if code != 0 {
			g.t.Fatalf("spa-client %s: exit %d\n%s\n%s", command, code, out, g.Log())
		}
	}
	err := g.Client.Do(func() error {
		conn, err := net.Dial("udp", "192.0.2.1:62201")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(make([]byte, 200))
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

// queries returns the queries of the dashboard, with its variables filled in.
func queries(t *testing.T) []string {
	t.Helper()
	var board struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	lab.Must(t, json.Unmarshal([]byte(read(t, "dashboard.json")), &board))
	var list []string
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			list = append(list, strings.NewReplacer("$instance", ".*", "$__rate_interval", "1m").Replace(target.Expr))
		}
	}
	if len(list) < 20 {
		t.Fatalf("%d queries: were they found?", len(list))
	}
	return list
}

var (
	metric = regexp.MustCompile(`\bspa_[a-z_]+\b`)
	values = regexp.MustCompile(`\b(verdict|reason)=~?"([^"]*)"`)
)

// TestAgainstTheRealThing: the metrics, verdicts and reasons that rules and dashboard name are on a real server's page,
// promtool finds nothing wrong with that, and the real Prometheus has data for each query, and raises no alert.
func TestAgainstTheRealThing(t *testing.T) {
	g := newGateway(t)
	g.prometheus()
	g.knock()
	page := g.get("http://127.0.0.1:9620/metrics")
	check := exec.Command(lab.NeedProgram(t, "promtool", "apt-get install prometheus"), "check", "metrics")
	check.Stdin = strings.NewReader(page)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	wantNamesOn(t, page)
	g.wantData()
	g.wantRules()
}

// wantNamesOn fails if the files of this directory name metrics or values that the page does not have.
func wantNamesOn(t *testing.T, page string) {
	t.Helper()
	for _, text := range append(queries(t), read(t, "rules.yml"), read(t, "rules_test.yml"), read(t, "README.md")) {
		for _, name := range metric.FindAllString(text, -1) {
			if !strings.Contains(page, "\n"+name+"{") && !strings.Contains(page, "\n"+name+" ") {
				t.Errorf("%s is not on the page, and is named in\n%s", name, text)
			}
		}
	}
	for _, text := range append(queries(t), read(t, "rules.yml")) {
		for _, m := range values.FindAllStringSubmatch(text, -1) {
			for value := range strings.SplitSeq(m[2], "|") {
				if !strings.Contains(page, fmt.Sprintf("%s=%q", m[1], value)) {
					t.Errorf("nothing on the page has %s=%q", m[1], value)
				}
			}
		}
	}
}

// wantData waits until Prometheus has data for each query of the dashboard.
func (g *gateway) wantData() {
	t := g.t
	t.Helper()
	for _, query := range queries(t) {
		knocked := false
		lab.Eventually(t, "data for "+query, func() bool {
			if g.query(query) > 0 {
				return true
			}
			if !knocked {
				g.knock() // a rate needs to see it rise
				knocked = true
			}
			return false
		})
	}
}

// wantRules fails unless Prometheus evaluates all rules, and none of them raises an alert.
func (g *gateway) wantRules() {
	t := g.t
	t.Helper()
	if n := g.query(`up{job="spa"} == 1`); n != 1 {
		t.Errorf("%d targets are up", n)
	}
	for _, alert := range alerts(t) {
		if n := g.query(fmt.Sprintf(`ALERTS{alertname=%q}`, alert)); n > 0 {
			t.Errorf("a healthy gateway raises %s", alert)
		}
	}
	var rules struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
	}
	lab.Must(t, json.Unmarshal([]byte(g.get("http://127.0.0.1:9090/api/v1/rules")), &rules))
	var known []string
	for _, rule := range rules.Data.Groups[0].Rules {
		known = append(known, rule.Name)
		if rule.LastError != "" {
			t.Errorf("%s: %s", rule.Name, rule.LastError)
		}
	}
	if !slices.Equal(known, alerts(t)) {
		t.Errorf("Prometheus has %v, want %v", known, alerts(t))
	}
}
