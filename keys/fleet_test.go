package keys

import (
	"slices"
	"strings"
	"testing"
)

// fleetProfile returns the profile of a client of a fleet.
func fleetProfile() *Profile {
	return &Profile{Name: "prod", Address: "example.net", KnockPorts: []uint16{62201}, Gate: NewGateKey(), Client: "alice",
		Key: NewKey(), Services: map[string][]string{"ssh": {"tcp/22"}}, Receipts: true, Fleet: NewFleetID(),
		Gateways: map[string]string{"web7": "", "db1": "198.51.100.7:62202"}}
}

func TestFleetToken(t *testing.T) {
	p := fleetProfile()
	token := p.Token()
	if !strings.HasPrefix(token, "spa2") {
		t.Fatal("the token of a fleet does not begin with spa2")
	}
	read, err := ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	if read.Token() != token || read.Fleet != p.Fleet || !read.Key.Equal(p.Key) || !read.Gate.Equal(p.Gate) {
		t.Error("a token does not return the profile that it was made of")
	}
	for i := range token {
		changed := token[:i] + string(token[i]^1) + token[i+1:]
		if _, err := ParseToken(changed); err == nil {
			t.Errorf("accepts a token with character %d changed", i)
		}
	}
}

func TestFleetTokenRefused(t *testing.T) {
	for name, change := range map[string]func(*Profile){
		"recovery":         func(p *Profile) { p.Recovery = true },
		"an id":            func(p *Profile) { p.ID = 1 },
		"a server id":      func(p *Profile) { p.ServerID = NewServerID() },
		"domain with port": func(p *Profile) { p.Address = "example.net:22" },
		"domain is an IP":  func(p *Profile) { p.Address = "[2001:db8::1]" },
		"no domain":        func(p *Profile) { p.Address = "" },
		"gateway's name":   func(p *Profile) { p.Gateways["Web 7"] = "" },
		"gateway's place":  func(p *Profile) { p.Gateways["web7"] = "a b" },
		"no fleet":         func(p *Profile) { p.Fleet, p.ID, p.ServerID = FleetID{}, 1, NewServerID() },
	} {
		p := fleetProfile()
		change(p)
		if p.Valid() == nil || p.Token() != "" {
			t.Errorf("%s: the profile is accepted", name)
		}
	}
}

func TestGateway(t *testing.T) {
	fleet := fleetProfile()
	web, err := fleet.Gateway("web7")
	if err != nil {
		t.Fatal(err)
	}
	db, err := fleet.Gateway("db1")
	if err != nil {
		t.Fatal(err)
	}
	if web.Address != "web7.example.net" || db.Address != "198.51.100.7:62202" {
		t.Errorf("addresses %s, %s", web.Address, db.Address)
	}
	if web.Key.Equal(db.Key) || web.ID == db.ID || web.ServerID == db.ServerID || web.Gate.Equal(db.Gate) {
		t.Error("two gateways have a key or an id in common")
	}
	if web.Key.Equal(fleet.Key) || web.Gate.Equal(fleet.Gate) {
		t.Error("a gateway has a key of the whole fleet")
	}
	if _, err := fleet.Gateway("../x"); err == nil {
		t.Error("accepts a name that is none")
	}
	fleet.Address = ""
	if _, err := fleet.Gateway("new"); err == nil {
		t.Error("finds a gateway without domain and address")
	}
}

// client returns a client of a file, or of the fleet.
func someClient(name string, fleet bool) *Client {
	return &Client{Name: name, ID: NewID(), Key: NewKey(), Allow: []string{"ssh"}, Fleet: fleet}
}

func TestFleetClientsWin(t *testing.T) {
	local, remote := someClient("alice", false), someClient("alice", true)
	bob := someClient("bob", false)
	r := &Registry{byID: make(map[ID]*record), byName: make(map[string]*record)}
	for _, c := range []*Client{local, bob} {
		r.add(r.terms.record(c))
	}
	apply := func(next ...*Client) []Change {
		changes, err := r.FleetChanges(next)
		if err != nil {
			t.Fatal(err)
		}
		return r.ApplyFleet(changes)
	}
	known := func(c *Client) bool { got, ok := r.Lookup(c.ID); return ok && got.Client.Same(c) }

	if changes := apply(remote); len(changes) != 1 || !changes[0].same(Change{local, remote}) {
		t.Errorf("changes %v", changes)
	}
	if known(local) || !known(remote) || !known(bob) || r.Len() != 2 || len(r.Clients()) != 2 {
		t.Error("a client of the fleet does not replace the file of its name, or others count no longer")
	}
	if !slices.Equal(r.Shadowed(), []string{"alice"}) {
		t.Errorf("shadowed: %v", r.Shadowed())
	}
	r.FleetAlone(true)
	if known(bob) || !known(remote) || r.Len() != 1 || len(r.Clients()) != 1 {
		t.Error("files count beside a fleet that is alone")
	}
	r.FleetAlone(false)
	again := *remote
	if changes := apply(&again); len(changes) != 0 {
		t.Errorf("an equal client is a change: %v", changes)
	}
	if changes := apply(); len(changes) != 1 || !changes[0].same(Change{remote, local}) {
		t.Errorf("leaving the fleet: %v", changes)
	}
	if !known(local) || known(remote) {
		t.Error("after the fleet, the file does not count again")
	}
}

func TestFleetIDMoves(t *testing.T) {
	r := &Registry{}
	was := someClient("zoe", true)
	is := *was
	is.Name = "amy"
	for _, next := range []*Client{was, &is, was} {
		changes, err := r.FleetChanges([]*Client{next})
		if err != nil {
			t.Fatal(err)
		}
		for i := range changes { // as the server does it: one after the other
			r.ApplyFleet(changes[i : i+1])
		}
		if got, ok := r.Lookup(next.ID); !ok || !got.Client.Same(next) {
			t.Errorf("%s is not found under the id that another name had", next.Name)
		}
	}
	twice := *was
	for _, list := range [][]*Client{{was, &is}, {was, &twice}} {
		if _, err := r.FleetChanges(list); err == nil {
			t.Error("accepts a name or an id twice")
		}
	}
}
