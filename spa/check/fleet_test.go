package check

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// TestCheckFleet: check reports what keeps the clients of a fleet out, and what keeps news from the gateway.
func TestCheckFleet(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	seal := fleet.Seal{Fleet: keys.NewFleetID(), Key: private}
	for name, test := range map[string]struct {
		spoil func(c *config.Config, bundle func(by fleet.Seal, gateway string, age time.Duration) []byte) error
		local bool // local_clients
		want  Severity
		says  []string
	}{
		"nothing": {want: Notice, says: []string{"local_clients is not set", "alice"}},
		"no key": {spoil: func(c *config.Config, _ func(fleet.Seal, string, time.Duration) []byte) error {
			return os.Remove(filepath.Join(c.Dir, config.FleetKeyFile))
		}, want: Problem, says: []string{"fleet.key", "init --fleet"}},
		"a key that others can read": {spoil: func(c *config.Config, _ func(fleet.Seal, string, time.Duration) []byte) error {
			return os.Chmod(filepath.Join(c.Dir, config.FleetKeyFile), 0o644)
		}, want: Problem, says: []string{"fleet.key", "chmod 640"}},
		"no bundle": {spoil: func(c *config.Config, _ func(fleet.Seal, string, time.Duration) []byte) error {
			return os.Remove(c.Fleet.Bundle)
		}, want: Problem, says: []string{"no bundle", "cannot knock"}},
		"an old bundle": {spoil: func(c *config.Config, bundle func(fleet.Seal, string, time.Duration) []byte) error {
			return os.WriteFile(c.Fleet.Bundle, bundle(seal, "gw", 8*24*time.Hour), 0o644)
		}, want: Warning, says: []string{"max_age", "revocations may not arrive"}},
		"for another gateway": {spoil: func(c *config.Config, bundle func(fleet.Seal, string, time.Duration) []byte) error {
			return os.WriteFile(c.Fleet.Bundle, bundle(seal, "web8", 0), 0o644)
		}, want: Problem, says: []string{"for web8", "this one is gw", "none is in force"}},
		"of another fleet": {spoil: func(c *config.Config, bundle func(fleet.Seal, string, time.Duration) []byte) error {
			return os.WriteFile(c.Fleet.Bundle, bundle(fleet.Seal{Fleet: keys.NewFleetID(), Key: private}, "gw", 0), 0o644)
		}, want: Problem, says: []string{"of another fleet"}},
		"another, with one that is kept": {spoil: func(c *config.Config,
			bundle func(fleet.Seal, string, time.Duration) []byte) error {
			kept := lab.Value(setup.OpenKept(c.State))(t)
			return errors.Join(kept.Save(bundle(seal, "gw", 0)), kept.Close(),
				os.WriteFile(c.Fleet.Bundle, []byte("x"), 0o644))
		}, want: Warning, says: []string{"not a whole bundle", "bundle 3 stays in force"}},
		"no directory for bundles": {spoil: func(c *config.Config, _ func(fleet.Seal, string, time.Duration) []byte) error {
			c.Fleet.Bundle = filepath.Join(c.Dir, "away", "fleet.bundle")
			return nil
		}, want: Problem, says: []string{"fleet.bundle", "mkdir -p"}},
		"once on a shared address": {spoil: func(c *config.Config,
			bundle func(fleet.Seal, string, time.Duration) []byte) error {
			c.Services[0].Once = true
			return os.WriteFile(c.Fleet.Bundle, bundle(seal, "gw", 0), 0o644)
		}, want: Problem, says: []string{"once", "shares the address of www"}},
		"a file beside a client of the fleet": {local: true, want: Notice, says: []string{"clients of these names", "alice"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := initialised(t, func(c *config.Config) {
				c.Fleet = config.Fleet{ID: seal.Fleet, Office: base64.StdEncoding.EncodeToString(public),
					Bundle: filepath.Join(c.Dir, config.BundleFile), LocalClients: test.local, MaxAge: 7 * 24 * time.Hour}
			}, keys.Client{RequireSource: true})
			request, _, err := setup.InitFleet(c)
			lab.Must(t, err)
			bundle := func(by fleet.Seal, gateway string, age time.Duration) []byte {
				alice := &keys.Client{Name: "alice", ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"imap"}}
				contents := &fleet.Contents{Site: "gw", Gates: keys.Gates{Current: keys.NewGateKey()},
					Clients: []*keys.Client{alice}}
				if c.Services[0].Once {
					contents.Site, contents.Share = "www", share.DeriveKey(seal.Key.Seed(), keys.ServerID{1})
				}
				return lab.Value(by.Seal(gateway, request.Recipient, 3, now.Add(-age), contents))(t).Bytes()
			}
			lab.Must(t, os.WriteFile(c.Fleet.Bundle, bundle(seal, "gw", 0), 0o644))
			if test.spoil != nil {
				lab.Must(t, test.spoil(c, bundle))
			}
			registry, _ := setup.LoadClients(filepath.Join(c.Dir, config.ClientsDir))
			defer registry.Close()
			found := checkFleet(c, registry, now)
			pasteable(t, found)
			if !says(found, test.want, test.says) {
				t.Errorf("got %+v, want %s with %q", found, test.want, test.says)
			}
			if name == "nothing" && len(found) != 1 {
				t.Errorf("got %+v", found)
			}
		})
	}
	for says, h := range map[string]control.Shared{
		"no agent is connected to the socket: clients of the fleet cannot knock": {},
		"another gateway takes part under this one's name":                       {Connected: true, Taken: true},
		"the gateway's store is away: clients of the fleet cannot knock":         {Connected: true},
		"the gateway's store is away: each gateway of the site decides alone":    {Connected: true, Local: true},
	} {
		found := checkMember(&control.Fleet{Shared: &h})
		pasteable(t, found)
		if len(found) != 1 || found[0].Severity != Problem || !strings.Contains(found[0].Text, says) {
			t.Errorf("got %+v, want %q", found, says)
		}
	}
	if found := checkMember(&control.Fleet{Shared: &control.Shared{Connected: true, Joined: true}}); len(found) != 0 {
		t.Errorf("one that takes part: got %+v", found)
	}
	found := checkMember(&control.Fleet{Unwatched: true, Unkept: "no space left on device"})
	if len(found) != 2 || !says(found, Problem, []string{"go unnoticed", setup.Restart}) ||
		!says(found, Warning, []string{"no space left"}) || checkMember(nil) != nil {
		t.Errorf("got %+v", found)
	}
}
