package server

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/fleet"
	"sallyport/spa/lab"
)

// reported returns what the gateway reports, and whether it is of this bundle.
func (p *fleetSite) reported(b *fleet.Bundle) (said *fleet.Taken, text []byte) {
	p.Helper()
	text = lab.Value(os.ReadFile(p.s.config.Fleet.Taken))(p)
	said, err := fleet.ParseTaken(text)
	if err != nil || !said.By(b.Taken()) || said.Serial != b.Serial || said.Gateway != "gw" || said.Fleet != p.seal.Fleet {
		p.Errorf("the gateway has bundle %d and reports %q: %v", b.Serial, text, err)
	}
	return said, text
}

// TestReportTaken: the gateway reports each bundle that it takes over, none that it refuses, and after a start the one
// in force, with the time of its take-over.
func TestReportTaken(t *testing.T) {
	p := newFleetSite(t, "")
	file := p.s.config.Fleet.Taken
	if text := lab.Value(os.ReadFile(file))(t); len(text) > 0 {
		t.Errorf("without a bundle it reports %q", text)
	}
	seal := func(serial int64) *fleet.Bundle {
		return lab.Value(p.seal.Seal("gw", p.to, serial, time.Now(), p.contents([]*keys.Client{fleetClient("ann")})))(t)
	}
	first, second := seal(9), seal(10)
	before := time.Now().Truncate(time.Second)
	for _, b := range []*fleet.Bundle{first, second} {
		p.offer(b.Bytes())
		p.take(t)
		if said, _ := p.reported(b); said.Since.Before(before) || said.Since.After(time.Now()) {
			t.Errorf("it was taken over at %v", said.Since)
		}
	}
	if info := lab.Value(os.Stat(file))(t); info.Mode() != 0o644 {
		t.Errorf("the file has mode %v", info.Mode())
	}

	_, was := p.reported(second)
	for what, offer := range map[string][]byte{"older": first.Bytes(), "the same": second.Bytes(),
		"twin": seal(10).Bytes(), "cut": seal(11).Bytes()[:2000]} {
		p.offer(offer)
		if r, _ := p.s.takeBundle(t.Context(), true); r != nil {
			t.Errorf("%s: taken over", what)
		}
		if _, text := p.reported(second); !bytes.Equal(text, was) {
			t.Errorf("%s: it reports %q", what, text)
		}
	}

	// The second was taken over an hour ago, and is the one in force after a start.
	then := time.Now().Add(-time.Hour).Truncate(time.Second)
	for _, name := range []string{config.BundlesFile, config.BundlesFile2} {
		lab.Must(t, os.Chtimes(filepath.Join(p.s.config.State, name), then, then))
	}
	lab.Must(t, errors.Join(os.Remove(p.path()), os.WriteFile(file, bytes.Repeat([]byte("x"), 600), 0o600)))
	p.restart()
	if said, _ := p.reported(second); !said.Since.Equal(then) {
		t.Errorf("after a start it has it since %v, and not %v", said.Since, then)
	}
}

// TestReportNowhere: a gateway that cannot report takes its bundles over all the same.
func TestReportNowhere(t *testing.T) {
	p := newFleetSite(t, fmt.Sprintf("taken = %q", filepath.Join(t.TempDir(), "none", "taken")))
	p.offer(p.bundle(1, fleetClient("ann")))
	p.take(t)
	if !p.said.has("cannot report to the office") {
		t.Error("the log does not say so")
	}
}
