package server

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/server/setup"
)

// TestFirewallConfig: each setting that the guard depends on reaches it, and changes nothing else there.
func TestFirewallConfig(t *testing.T) {
	inner := config.NewService("inner", parsed(t, "tcp/80")...)
	inner.Addresses = []netip.Addr{inside}
	cut := config.NewService("cut", parsed(t, "tcp/23")...)
	cut.OnExpiry = "cut"
	for name, test := range map[string]struct {
		set  func(c *config.Config)
		want func(c *firewall.Config)
	}{
		"nothing": {func(c *config.Config) {}, func(c *firewall.Config) {}},
		"mode": {func(c *config.Config) { c.Firewall.Mode = "admit" },
			func(c *firewall.Config) { c.Mode = firewall.Admit }},
		"persist": {func(c *config.Config) { c.Firewall.Persist = "file" },
			func(c *firewall.Config) { c.Persist = firewall.PersistFile }},
		"closed": {func(c *config.Config) { c.Firewall.Closed = "reject" },
			func(c *firewall.Config) { c.Closed = firewall.Reject }},
		"a service inside": {func(c *config.Config) { c.Services = append(c.Services, inner) }, func(c *firewall.Config) {
			c.Guarded = append(c.Guarded, inner.Ports...)
			c.Targets = []firewall.Target{{Addresses: inner.Addresses, Ports: inner.Ports}}
		}},
		"a service whose sessions end": {func(c *config.Config) { c.Services = append(c.Services, cut) },
			func(c *firewall.Config) {
				c.Guarded, c.Cut = append(c.Guarded, cut.Ports...), []service.Ports{{Proto: service.TCP, Low: 23, High: 23}}
			}},
	} {
		b := newBench(t)
		want := setup.FirewallConfig(b.s.config, b.s.clients, time.Now)
		if zero := (firewall.Config{}); want.Mode != zero.Mode || want.Persist != zero.Persist ||
			want.Closed != zero.Closed || len(want.Targets)+len(want.Cut) > 0 {
			t.Fatalf("of nothing special is made %+v", want)
		}
		test.want(&want)
		b.rule(test.set)
		got := setup.FirewallConfig(b.s.config, b.s.clients, time.Now)
		got.Keep, got.Now, want.Keep, want.Now = nil, nil, nil, nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}
