package setup

import (
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/policy"
)

// keepAtStart returns which grants of an earlier server the clients may still have. A key may have been revoked while
// no server was running. Rekeyed are clients of a fleet that had only other keys here until then: a bundle comes some
// time after its office has replaced a key.
func keepAtStart(c *config.Config, clients *keys.Registry, rekeyed map[string]time.Time,
	now func() time.Time) func(firewall.Grant) bool {
	rules := policy.New(c, nil)
	return func(g firewall.Grant) bool {
		client, _ := clients.Client(g.Client)
		if !rules.Keeps(client, g, now()) || rules.OfReplacedKey(client, g, now()) {
			return false
		}
		until, ok := rekeyed[g.Client]
		return !ok || !rules.MayBeFrom(client, g, until, now())
	}
}

// forwardOf returns where the ports of a service lead.
func forwardOf(s config.Service) firewall.Forward {
	f := firewall.Forward{Ports: s.Ports, Port: s.LedTo(), Masquerade: s.Masquerade}
	if f.Port == 0 {
		f.To = s.Forward
	}
	return f
}

// FirewallConfig returns the part of the configuration that the firewall needs. Its Keep is for a reload: it keeps the
// grants that the clients may still have. A start uses keepAtStart.
func FirewallConfig(c *config.Config, clients *keys.Registry, now func() time.Time) firewall.Config {
	rules := policy.New(c, nil)
	fc := firewall.Config{
		Now: now,
		Keep: func(g firewall.Grant) bool {
			client, _ := clients.Client(g.Client)
			return rules.Keeps(client, g, now())
		},
		Backend: c.Firewall.Backend,
		Admit:   firewall.AdmitSets(c.Firewall.Admit),
		Trusted: c.Firewall.TrustedInterfaces,
		TPROXY:  c.Firewall.TPROXY,
		Mark:    c.Firewall.Mark,
		State:   c.State,
		User:    SystemUser,
	}
	if c.Firewall.Mode == "admit" {
		fc.Mode = firewall.Admit
	}
	if c.Firewall.Persist == "file" {
		fc.Persist = firewall.PersistFile
	}
	if c.Firewall.Closed == "reject" {
		fc.Closed = firewall.Reject
	}
	for _, service := range c.Services {
		fc.Guarded = append(fc.Guarded, service.Ports...)
		if len(service.Addresses) > 0 {
			fc.Targets = append(fc.Targets, firewall.Target{Addresses: service.Addresses, Ports: service.Ports})
		}
		if service.Once {
			fc.Once = append(fc.Once, service.Ports...)
		}
		if service.Forwards() {
			fc.Forwards = append(fc.Forwards, forwardOf(service))
		}
		if service.Cuts() {
			fc.Cut = append(fc.Cut, service.Ports...)
		}
	}
	for _, port := range c.KnockPorts {
		fc.Knock = append(fc.Knock, firewall.KnockPort{Port: port.Port, Shared: port.Shared})
	}
	return fc
}
