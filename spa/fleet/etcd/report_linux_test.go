package etcd_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/agent"
	"sallyport/spa/fleet/etcd"
	"sallyport/spa/lab"
)

func openStore(t *testing.T, c etcd.Cluster, id keys.FleetID, ca, cert, key string) *etcd.Store {
	t.Helper()
	secure := lab.Value(agent.TLS(ca, cert, key))(t)
	store := lab.Value(etcd.Open(etcd.Config{Endpoints: agent.Endpoints(c.Hosts()), TLS: secure, Fleet: id}))(t)
	t.Cleanup(func() { store.Close() })
	return store
}

// TestReporter: an agent with taken in its settings carries each report of its gateway to the office, and no other
// text, also if the report came while the agent did not run.
func TestReporter(t *testing.T) {
	c := etcd.NewCluster(t, 1)
	ca, cert, key := c.Files(t, "agent")
	_, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	seal := fleet.Seal{Fleet: keys.NewFleetID(), Key: private}
	store := openStore(t, c, seal.Fleet, ca, cert, key)
	web := lab.Value(age.GenerateHybridIdentity())(t)
	said := func(gateway string, serial int64) []byte {
		b := lab.Value(seal.Seal(gateway, web.Recipient(), serial, time.Now(), &fleet.Contents{Site: gateway,
			Gates: keys.Gates{Current: keys.NewGateKey()}}))(t)
		return []byte(lab.Value(fleet.Open(b, web))(t).Taken.Sign(b.Head, time.Now()).String() + "\n")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "fleet.taken")
	report := lab.Value(os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o644))(t)
	defer report.Close()
	write := func(text []byte) { lab.Value(report.WriteAt(text, 0))(t) } // as the server does
	lab.Must(t, os.WriteFile(filepath.Join(dir, agent.FileName), fmt.Appendf(nil, "version = 1\ngateway = \"web\"\n"+
		"from = \"etcd://%s\"\ntaken = \"fleet.taken\"\nfleet = \"%s\"\nca = %q\ncert = %q\nkey = %q\n",
		c.Hosts(), seal.Fleet,
		ca, cert, key), 0o644))
	config := lab.Value(agent.Load(dir))(t)
	there := func(want []byte) func() bool {
		return func() bool {
			got, err := store.Taken(t.Context())
			return err == nil && len(got) == 1 && bytes.Equal(got["web"], want)
		}
	}
	var log lines
	run := func(while func()) {
		r, closing, err := config.OpenReporter(slog.New(slog.NewTextHandler(&log, nil)))
		lab.Must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { r.Run(ctx) })
		while()
		cancel()
		running.Wait()
		lab.Must(t, closing())
	}
	first, second, third := said("web", 1), said("web", 2), said("web", 3)
	run(func() {
		write(first)
		lab.Eventually(t, "the office has the report", there(first))
		write(second)
		lab.Eventually(t, "and the next one", there(second))
		lab.Must(t, os.WriteFile(file, third[:len(third)-20], 0o644))
		lab.Eventually(t, "half a line is not carried", func() bool { return log.has(fleet.ErrTaken.Error()) })
		lab.Must(t, os.WriteFile(file, said("db", 2), 0o644))
		lab.Eventually(t, "nor the line of another gateway", func() bool { return log.has("of another gateway") })
	})
	if !there(second)() {
		t.Error("what is no report of the gateway reached the office")
	}
	lab.Must(t, os.WriteFile(file, third, 0o644))
	run(func() { lab.Eventually(t, "an agent that starts carries the report", there(third)) })
	c.Put(t, "sallyport/"+seal.Fleet.String()+"/taken/web", string(first))
	run(func() { lab.Eventually(t, "also into a store that went back", there(third)) })
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

var _ io.Writer = new(lines)

func (l *lines) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(text)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// TestManyReports: the office gets all reports, however large gateways make theirs.
func TestManyReports(t *testing.T) {
	c := etcd.NewCluster(t, 1)
	ca, cert, key := c.Files(t, "office")
	id := keys.NewFleetID()
	store := openStore(t, c, id, ca, cert, key)
	large := bytes.Repeat([]byte("x"), 3<<19-1000)
	for i := range 25 {
		name := fmt.Sprintf("gw%d", i)
		lab.Eventually(t, "a report is written", func() bool { return store.Report(t.Context(), name, large) == nil })
	}
	got, err := store.Taken(t.Context())
	if err != nil || len(got) != 25 || len(got["gw24"]) <= fleet.MaxTaken {
		t.Errorf("the office gets %d reports: %v", len(got), err)
	}
}
