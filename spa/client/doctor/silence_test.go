package doctor

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/client"
	"sallyport/spa/lab"
)

// A port that changed with the knock shows that the gateway received it, and no causes are guessed. A port that did not
// change, or was not requested, shows nothing.
func TestHeardAllTheSame(t *testing.T) {
	listening := lab.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listening.Close()
	accepts := netip.MustParseAddrPort(listening.Addr().String()).Port()
	const nobodys = 9
	for name, c := range map[string]struct {
		service string
		port    uint16
		before  reach
		want    string // empty: causes are guessed
	}{
		"open now":               {"ssh", accepts, dark, "its answer does not arrive"},
		"refused now":            {"ssh", nobodys, dark, "nothing listens there"},
		"open before":            {"ssh", accepts, open, ""},
		"refused before":         {"ssh", nobodys, refused, ""},
		"another service's port": {"web", accepts, dark, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := &examination{ctx: t.Context(), profile: &keys.Profile{Name: "gw", Client: "alice",
				KnockPorts: []uint16{62201}, Receipts: true},
				services: []service.Service{{Name: "ssh"}, {Name: "web"}}, options: Options{Timeout: lab.Patience}}
			f := newFamily(netip.MustParseAddr("127.0.0.1"))
			f.before = []touch{{service: service.Service{Name: c.service}, port: c.port, reach: c.before}}
			f.knocks = []knocked{{port: 62201, service: e.first(), answer: client.Answer{Err: client.ErrNoAnswer}}}
			e.families = []*family{f}
			found := e.silence()
			if c.want == "" {
				if len(found) < 2 || found[1].State != Suspect {
					t.Errorf("got %+v, want causes", found)
				}
				return
			}
			if len(found) != 1 || found[0].State != Bad || found[0].Step != StepSilence ||
				!strings.Contains(found[0].Text, c.want) {
				t.Errorf("got %+v, want %q", found, c.want)
			}
		})
	}
}
