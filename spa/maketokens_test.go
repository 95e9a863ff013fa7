package spa

import (
	"maps"
	"slices"
	"strings"

	"sallyport/keys"
)

// addTokens adds the vectors of the text that gives a client all it needs to seal.
func addTokens(made map[string]string) {
	p := &keys.Profile{
		Name: "gw", Client: "alice", Address: "gw.example.net", Source: "observed",
		KnockPorts: []uint16{62201, 443}, ServerID: testServer, Gate: testGate(0x40), ID: aliceID, Key: testKey(0x80),
		Receipts: true, Services: map[string][]string{"ssh": {"tcp/22"}, "mosh": {"udp/60000-60010", "tcp/22"}},
	}
	l := &lines{}
	l.add("# A profile and its token.\nverdict", "token-ok")
	l.addProfile(p)
	l.add("token", p.Token())
	made["token"] = l.String()

	l = &lines{}
	l.add("# The same, but one character is another.\nverdict", "token-wrong")
	l.add("token", strings.Replace(p.Token(), "Z", "z", 1))
	made["token-wrong"] = l.String()
}

// addProfile writes a service as its name and its ports.
func (l *lines) addProfile(p *keys.Profile) {
	l.add("name", p.Name)
	l.add("client", p.Client)
	l.add("address", p.Address)
	l.add("source", p.Source)
	for _, port := range p.KnockPorts {
		l.add("knock port", port)
	}
	l.add("server id", p.ServerID[:])
	l.add("gate key", fromBase64(p.Gate.Reveal()))
	l.add("client id", p.ID)
	l.add("client key", fromBase64(p.Key.Reveal()))
	l.add("receipts", p.Receipts)
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		l.add("service", name+" "+strings.Join(p.Services[name], " "))
	}
}
