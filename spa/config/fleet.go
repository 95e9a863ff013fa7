package config

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
)

// Names of the files of a gateway in a fleet: its key and, unless the settings name another place, the bundle that it
// is offered, both beside server.toml; the two in the state directory that have the last bundles in turn, and, unless
// the settings name another place, the report of which bundle is in force and the socket for the agent.
const (
	FleetKeyFile = "fleet.key"
	BundleFile   = "fleet.bundle"
	BundlesFile  = "bundle-1"
	BundlesFile2 = "bundle-2"
	TakenFile    = "fleet.taken"
	ShareFile    = "share.sock"
)

// defaultMaxAge is how old a bundle may be unless the settings say otherwise.
const defaultMaxAge = 7 * 24 * time.Hour

// Fleet names the fleet of which the gateway is, and whose bundles it takes. The zero value is a gateway alone.
type Fleet struct {
	ID           keys.FleetID
	Office       string        // its public key: base64, Ed25519
	Gateway      string        // what the fleet calls this gateway; empty: Name
	Bundle       string        // absolute: the file in which bundles are offered
	Taken        string        // absolute: the file that reports to the office which bundle is in force
	LocalClients bool          // client files beside server.toml count too
	MaxAge       time.Duration // of a bundle that is reported as old
	Share        string        // absolute: the socket of the agent, through which gateways share an address
	Standalone   string        // what a gateway that shares its address does without its store: refuse or local
}

// Values of Fleet.Standalone.
const (
	StandaloneRefuse = "refuse" // clients of the fleet get no answer: no packet is used twice
	StandaloneLocal  = "local"  // it decides as if it were alone: each of the gateways may use a packet once
)

// On reports whether the gateway is in a fleet.
func (f Fleet) On() bool { return f.ID != keys.FleetID{} }

// FleetName returns what the fleet calls this gateway; empty if it is in none.
func (c *Config) FleetName() string {
	if c.Fleet.On() && c.Fleet.Gateway == "" {
		return c.Name
	}
	return c.Fleet.Gateway
}

type rawFleet struct {
	ID           *string `toml:"id"`
	Office       *string `toml:"office"`
	Gateway      *string `toml:"gateway"`
	Bundle       *string `toml:"bundle"`
	Taken        *string `toml:"taken"`
	LocalClients *bool   `toml:"local_clients"`
	MaxAge       *string `toml:"max_age"`
	Share        *string `toml:"share"`
	Standalone   *string `toml:"standalone"`
}

// fleet reads the settings of a fleet: none, or at least its id and the key of its office.
func (l *loader) fleet() {
	raw, f := l.raw.Fleet, &l.cfg.Fleet
	if raw == (rawFleet{}) {
		return
	}
	if raw.ID == nil || raw.Office == nil {
		l.must("fleet", errors.New("needs both id and office: the office prints the command that sets them"))
		return
	}
	var err error
	f.ID, err = keys.ParseFleetID(*raw.ID)
	l.must("fleet.id", err)
	f.Office = *raw.Office
	l.must("fleet.office", validOffice(f.Office))
	if raw.Gateway != nil {
		f.Gateway = *raw.Gateway
		l.must("fleet.gateway", service.ValidName(f.Gateway))
	}
	f.Bundle = filepath.Join(l.cfg.Dir, BundleFile)
	if raw.Bundle != nil {
		f.Bundle = l.path("fleet.bundle", l.cfg.Dir, *raw.Bundle)
	}
	f.Taken = filepath.Join(l.cfg.State, TakenFile)
	if raw.Taken != nil {
		f.Taken = l.path("fleet.taken", l.cfg.State, *raw.Taken)
	}
	f.LocalClients = raw.LocalClients != nil && *raw.LocalClients
	f.MaxAge = defaultMaxAge
	if raw.MaxAge != nil {
		f.MaxAge = l.duration("fleet.max_age", *raw.MaxAge)
	}
	f.Share = filepath.Join(l.cfg.State, ShareFile)
	if raw.Share != nil {
		f.Share = l.path("fleet.share", l.cfg.State, *raw.Share)
		if len(f.Share) > longestSocket {
			l.must("fleet.share", fmt.Errorf("is too long: the path of a socket has at most %d bytes", longestSocket))
		}
	}
	f.Standalone = StandaloneRefuse
	if raw.Standalone != nil {
		f.Standalone = *raw.Standalone
		if f.Standalone != StandaloneRefuse && f.Standalone != StandaloneLocal {
			l.must("fleet.standalone", fmt.Errorf("should be %q or %q", StandaloneRefuse, StandaloneLocal))
		}
	}
}

// validOffice returns an error unless the text is the public key of an office.
func validOffice(text string) error {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != ed25519.PublicKeySize || base64.StdEncoding.EncodeToString(b) != text {
		return fmt.Errorf("should be the public key of the office: %d bytes in base64, 44 characters",
			ed25519.PublicKeySize)
	}
	return nil
}

// filled fills in defaults for zero values.
func (f Fleet) filled(dir, state string) Fleet {
	if !f.On() {
		return f
	}
	f.Bundle = or(f.Bundle, filepath.Join(dir, BundleFile))
	f.Taken = or(f.Taken, filepath.Join(state, TakenFile))
	f.MaxAge = or(f.MaxAge, defaultMaxAge)
	f.Share = or(f.Share, filepath.Join(state, ShareFile))
	f.Standalone = or(f.Standalone, StandaloneRefuse)
	return f
}

func (f Fleet) write(b *strings.Builder, dir, state string) {
	if !f.On() {
		example(b, "[fleet]", "for many gateways with one office: spa-server init --fleet")
		example(b, `id = "6a09e667f3bcc908b2fb1366ea957d3e"`, "the office prints the command that sets both")
		example(b, `office = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="`, "only what this key has signed is taken")
		f.writeRest(b, dir, state)
		return
	}
	b.WriteString("\n[fleet]\n")
	setting(b, "id", quote(f.ID.String()), "")
	setting(b, "office", quote(f.Office), "only what this key has signed is taken")
	f.writeRest(b, dir, state)
}

// writeRest writes the settings that most gateways leave at their default.
func (f Fleet) writeRest(b *strings.Builder, dir, state string) {
	changed(b, f.Gateway != "", "gateway", quote(f.Gateway), `gateway = "web7"`, "what the fleet calls this gateway; by "+
		"default its name")
	changed(b, f.On(), "bundle", quote(relative(dir, f.Bundle)), `bundle = "fleet.bundle"`, "any program may put it "+
		"there; relative to this file")
	changed(b, f.On(), "taken", quote(relative(state, f.Taken)), `taken = "fleet.taken"`, "reports to the office which "+
		"bundle is in force; relative to state")
	changed(b, f.LocalClients, "local_clients", "true", "local_clients = true", "files in clients/ count too")
	changed(b, f.On(), "max_age", quote(service.FormatDuration(f.MaxAge)), `max_age = "168h"`, "an older bundle is "+
		"reported: changes may not arrive")
	changed(b, f.On(), "share", quote(relative(state, f.Share)), `share = "share.sock"`, "gateways that share an "+
		"address: the agent connects there; relative to state")
	changed(b, f.On(), "standalone", quote(f.Standalone), `standalone = "refuse"`, "of gateways that share an address; "+
		"\"local\": without their store, each decides alone")
}
