package agent_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/agent"
	"sallyport/spa/lab"
)

// versions is what a source has, one after the other.
type versions [][]byte

func (v versions) Follow(_ context.Context, take func([]byte) error, _ func(error)) {
	for _, text := range v {
		take(text)
	}
}

// TestForgedSerial: a forged bundle with the highest serial does not keep later ones away.
func TestForgedSerial(t *testing.T) {
	gateway, id := lab.Value(age.GenerateHybridIdentity())(t), keys.NewFleetID()
	sealed := func(serial int64) []byte {
		_, key, err := ed25519.GenerateKey(nil)
		lab.Must(t, err)
		c := &fleet.Contents{Site: "web", Gates: keys.Gates{Current: keys.NewGateKey()}}
		b := lab.Value(fleet.Seal{Fleet: id, Key: key}.Seal("web", gateway.Recipient(), serial, time.Now(), c))(t)
		return b.Bytes()
	}
	forged, good := sealed(math.MaxInt64-1), sealed(7)
	to := filepath.Join(t.TempDir(), "fleet.bundle")
	a := agent.Agent{Source: versions{forged, good}, Gateway: "web", To: to, Log: slog.New(slog.DiscardHandler)}
	a.Run(context.Background())
	if text := lab.Value(os.ReadFile(to))(t); !bytes.Equal(text, good) {
		t.Errorf("the good bundle is not in place: %d bytes, want %d", len(text), len(good))
	}
}
