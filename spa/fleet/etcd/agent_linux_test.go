package etcd_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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

// TestAgent: an agent with the settings of its page gets what the office publishes, and only of its own fleet.
func TestAgent(t *testing.T) {
	c := etcd.NewCluster(t, 1)
	ca, cert, key := c.Files(t, "agent")
	secure := lab.Value(agent.TLS(ca, cert, key))(t)
	_, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	to := lab.Value(age.GenerateHybridIdentity())(t).Recipient()
	for range 2 {
		seal := fleet.Seal{Fleet: keys.NewFleetID(), Key: private}
		store := lab.Value(etcd.Open(etcd.Config{Endpoints: agent.Endpoints(c.Hosts()), TLS: secure, Fleet: seal.Fleet}))(t)
		defer store.Close()
		b := lab.Value(seal.Seal("web", to, 1, time.Now(), &fleet.Contents{Site: "web",
			Gates: keys.Gates{Current: keys.NewGateKey()}}))(t)
		lab.Eventually(t, "the office can publish", func() bool {
			return store.PublishAll(t.Context(), []*fleet.Bundle{b}, 1) == nil
		})
		dir := t.TempDir()
		lab.Must(t, os.WriteFile(filepath.Join(dir, agent.FileName), fmt.Appendf(nil, "version = 1\ngateway = \"web\"\n"+
			"from = \"etcd://%s\"\nto = \"here\"\nfleet = \"%s\"\nca = %q\ncert = %q\nkey = %q\n", c.Hosts(), seal.Fleet, ca,
			cert, key), 0o644))
		config := lab.Value(agent.Load(dir))(t)
		source, closing, err := config.Open()
		lab.Must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			(&agent.Agent{Source: source, Gateway: "web", To: config.To, Log: slog.New(slog.DiscardHandler)}).Run(ctx)
		})
		lab.Eventually(t, "the bundle is in place", func() bool {
			got, _ := os.ReadFile(config.To)
			return bytes.Equal(got, b.Bytes())
		})
		cancel()
		running.Wait()
		lab.Must(t, closing())
	}
}
