package server

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
	"sallyport/spa/server/setup"
)

// A fleetSite is a gateway of a fleet, and the office of that. Both are real, except for the gateway's firewall and
// sockets.
type fleetSite struct {
	*bench
	seal fleet.Seal
	to   *age.HybridRecipient
	gate keys.GateKey // of the fleet
	said *lines
	site string                 // "gw": it shares no address
	slow atomic.Pointer[func()] // is called at the next change of the firewall, once
}

func newFleetSite(t testing.TB, more string) *fleetSite {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	return newMemberOf(t, "gw", fleet.Seal{Fleet: keys.NewFleetID(), Key: private}, keys.NewGateKey(), more)
}

// newMemberOf returns a gateway of a fleet with this office and gate key, and of this site.
func newMemberOf(t testing.TB, site string, seal fleet.Seal, gate keys.GateKey, more string) *fleetSite {
	t.Helper()
	p := &fleetSite{seal: seal, gate: gate, said: &lines{}, site: site}
	p.bench = newSite(t, func(string) {
		if slow := p.slow.Swap(nil); slow != nil {
			(*slow)()
		}
	})
	public := seal.Key.Public().(ed25519.PublicKey)
	p.s.log = slog.New(witness{slog.DiscardHandler, p.said.add})
	p.rewrite("# [fleet]", fmt.Sprintf("[fleet]\nid = %q\noffice = %q\n%s\n#", p.seal.Fleet,
		base64.StdEncoding.EncodeToString(public), more))
	p.s.config = lab.Value(config.Load(p.s.dir))(t)
	request, _, err := setup.InitFleet(p.s.config)
	lab.Must(t, err)
	p.to = request.Recipient
	p.restart()
	t.Cleanup(func() { lab.Must(t, p.s.Close()) }) // a user has few inotify instances
	return p
}

// restart begins again with the files that there are.
func (p *fleetSite) restart() {
	p.Helper()
	lab.Must(p, p.s.Close())
	p.s.fleet, p.s.fleetGates, p.s.identity = nil, nil, spa.Identity{}
	lab.Must(p, errors.Join(p.s.openFleet(), p.s.openKeys()))
}

// fleetClient returns a client of the fleet as its office has it.
func fleetClient(name string) *keys.Client {
	return &keys.Client{Name: name, Key: keys.NewKey(), Allow: []string{"ssh"}}
}

// bundle returns a bundle of this place with these clients.
func (p *fleetSite) bundle(serial int64, clients ...*keys.Client) []byte {
	p.Helper()
	return p.sealed(p.seal, "gw", p.to, serial, p.contents(clients))
}

func (p *fleetSite) sealed(by fleet.Seal, gateway string, to *age.HybridRecipient, serial int64,
	c *fleet.Contents) []byte {
	p.Helper()
	return lab.Value(by.Seal(gateway, to, serial, time.Now(), c))(p).Bytes()
}

func (p *fleetSite) contents(clients []*keys.Client) *fleet.Contents {
	server := p.seal.Fleet.Server(p.site)
	c := &fleet.Contents{Site: p.site, Gates: keys.Gates{Current: p.gate}.At(server)}
	if p.site != "gw" {
		c.Share = share.DeriveKey(p.seal.Key.Seed(), server)
	}
	for _, client := range clients {
		at := *client
		at.Key, at.ID = client.Key.At(server), client.Key.IDAt(server)
		c.Clients = append(c.Clients, &at)
	}
	return c
}

// sender is what a client of the fleet knocks with here.
func (p *fleetSite) sender(c *keys.Client) spa.Sender {
	p.Helper()
	profile := &keys.Profile{Name: "prod", Fleet: p.seal.Fleet, Address: "example.net", Gate: p.gate, Client: c.Name,
		Key: c.Key, KnockPorts: []uint16{62201}}
	at := lab.Value(profile.Gateway(p.site))(p)
	return spa.Sender{Server: at.ServerID, Gate: at.Gate, ID: at.ID, Key: at.Key}
}

func (p *fleetSite) path() string { return p.s.config.Fleet.Bundle }

// offer puts a file there as rsync does.
func (p *fleetSite) offer(text []byte) {
	p.Helper()
	tmp := p.path() + ".tmp"
	lab.Must(p, errors.Join(os.RemoveAll(p.path()), os.WriteFile(tmp, text, 0o644), os.Rename(tmp, p.path())))
}

// wantInForce checks that exactly these clients of the fleet are known, and that no other can knock.
func (p *fleetSite) wantInForce(when string, serial int64, in, out []*keys.Client) {
	p.Helper()
	if st := p.s.fleetStatus(time.Now()); st.Serial != serial || st.Clients != len(in) || p.s.clients.Len() != len(in) {
		p.Errorf("%s: bundle %d with %d clients is in force, and the server has %d; want %d with %d", when, st.Serial,
			st.Clients, p.s.clients.Len(), serial, len(in))
	}
	for _, c := range in {
		if v := p.verdict(c); v == audit.Unopened { // one that was away may be denied for a window
			p.Errorf("%s: %s: %v", when, c.Name, v)
		}
	}
	for _, c := range out {
		if v := p.verdict(c); v != audit.Unopened {
			p.Errorf("%s: %s: %v", when, c.Name, v)
		}
	}
}

func (p *fleetSite) verdict(c *keys.Client) audit.Verdict {
	return p.s.handle(context.Background(), arriving(sealed(p, p.sender(c)))).Verdict
}

// take takes over the bundle that is offered, which is good.
func (p *fleetSite) take(t *testing.T) {
	t.Helper()
	if r, err := p.s.takeBundle(t.Context(), true); err != nil || r == nil {
		t.Fatalf("a good bundle: got %v, %v", r, err)
	}
}
