package config

import (
	"errors"
	"fmt"
	"slices"

	"sallyport/keys/service"
)

// once refuses once = true where it cannot hold.
func (l *loader) once(key string, s Service) {
	if !s.Once {
		return
	}
	switch f := l.cfg.Firewall; {
	case f.Mode == "admit":
		l.must(key+".once", errors.New(`works with firewall.mode = "guard" only: your own table decides how many `+
			"connections get in"))
	case f.Backend == "iptables":
		l.must(key+".once", errors.New(`needs nftables: remove it, or set firewall.backend = "nftables"`))
	case !l.cfg.Receipts:
		l.must(key+".once", errors.New("needs receipts = true: without a receipt, a client finds out by connecting "+
			"whether the port is open, and that connection would be the one"))
	case s.MaxFor > service.LongestOnce:
		l.must(key+".max_for", fmt.Errorf("must be at most %s with once = true",
			service.FormatDuration(service.LongestOnce)))
	}
}

// Once reports whether the first connection to one of the ports takes the grant for it with it.
func (c *Config) Once(ports []service.Ports) bool {
	return slices.ContainsFunc(c.Services, func(s Service) bool { return s.Once && anyOverlap(s.Ports, ports) })
}
