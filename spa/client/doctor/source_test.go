package doctor

import (
	"net/netip"
	"testing"

	"sallyport/keys"
	"sallyport/spa/client"
	"sallyport/spa/lab"
)

// A stated address has one family, and the other one is skipped: that is no fault, unless there is no other.
func TestStatedSourceLeavesOut(t *testing.T) {
	both := []string{"127.0.0.1", "::1"}
	for name, c := range map[string]struct {
		gateways        []string
		option, profile string
		left            int
	}{
		"of one family":       {both, "127.0.0.1", "", 1},
		"of the other":        {both, "::1", "", 1},
		"by the profile":      {both, "", "127.0.0.1", 1},
		"the option is first": {both, "observed", "127.0.0.1", 2},
		"none is stated":      {both, "", "auto", 2},
		"of no family":        {both[:1], "::1", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			source := lab.Value(client.ParseSource(c.option))(t)
			e := &examination{ctx: t.Context(), profile: &keys.Profile{Name: "gw", KnockPorts: []uint16{9}, Source: c.profile},
				options: Options{Source: source}}
			for _, addr := range c.gateways {
				e.families = append(e.families, newFamily(netip.MustParseAddr(addr)))
			}
			found := e.leaveOut()
			if len(e.families) != c.left || len(found) != len(c.gateways)-c.left {
				t.Errorf("got %d families, want %d: %v", len(e.families), c.left, found)
			}
			if c.left > 0 {
				return
			}
			if e.address(); !e.over {
				t.Error("continues without any family")
			}
		})
	}
}

// The reason why a name does not resolve is the resolver's; of the two families' reasons, the more specific one.
func TestWhyUnresolved(t *testing.T) {
	resolve(t)
	e := &examination{ctx: t.Context(), profile: &keys.Profile{Name: "gw", Address: "gw.example.net."},
		options: Options{Timeout: 1}}
	if found := e.name(); len(found) != 1 ||
		found[0].Text != "gw.example.net. does not resolve: the resolver does not answer" {
		t.Errorf("got %+v", found)
	}
}
