package firewall

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestTwoForwardsToOnePlace: where two ports lead to one place, the end of one grant does not end the sessions of the
// other, or the backend refuses the setting.
func TestTwoForwardsToOnePlace(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		for _, way := range forwardings()[3:5] { // with cut
			f := bothFamilies[0]
			w := &forwarded{forwarding: way, sides: f}
			w.site = k.newSite(t, func(c *Config) {
				one := way.forwards()[0]
				two := one
				one.Ports, two.Ports = rangesOf("tcp/2222"), rangesOf("tcp/2223")
				c.Forwards = []Forward{one, two}
				cutting("tcp/2222", "tcp/2223")(c)
			})
			if strings.HasPrefix(k.name, "iptables") {
				w.must(w.gw.Do(func() error {
					fw, err := New(w.config, slog.New(slog.DiscardHandler))
					if err == nil || !strings.Contains(err.Error(), "two ports lead to") {
						w.Errorf("got %v", err)
					}
					if err == nil {
						return fw.Close()
					}
					return nil
				}))
				continue
			}
			w.at, w.place = w.gw, f.gateway
			if way.away {
				w.at, w.place = w.behind(), innerAddr[f.name]
			}
			w.accept = w.listens(w.at, ":2300")
			w.open()
			w.load(0)
			w.grantPorts("one", f.alice, long, "tcp/2222")
			w.grantPorts("two", f.alice, long, "tcp/2223")
			v := w.talks(f.alice)
			w.revoke(Match{Services: []string{"two"}})
			w.mutual(v, true)
		}
	})
}

// TestForwardNearby: a forwarded port leads a link-local client on, on its own link, and the client's other ports lead
// nowhere else.
func TestForwardNearby(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		w := newForwarded(t, k, forwarding{name: "port"}, bothFamilies[1])
		stranger, first, _ := w.twoLinks()
		ssh, led := near("alice", first, long), near("alice", first, long)
		led.Service, led.Ports = "led", rangesOf("tcp/2222")
		w.must(w.Grant(t.Context(), []Grant{ssh, led}, time.Now()))
		c := w.opensNearAt(w.client, "vc", "2222", lab.Patience)
		if c == nil {
			t.Fatal("alice is shut out on her link")
		}
		w.mutual(session{c, w.hearing(w.accept, c)}, true)
		if c = w.opensNear(w.client, "vc", lab.Patience); c == nil {
			t.Fatal("alice is shut out of another port")
		}
		w.echoes(c)
		if w.opensNearAt(stranger, "eth0", "2222", silence) != nil {
			t.Error("a stranger on another link is let in")
		}
	})
}
