package firewall

import (
	"net/netip"
	"time"
)

// Holds reports whether the client holds a live grant of the service for the source: another
// one would prolong it, and not be one more.
func (f *Firewall) Holds(client, service string, source netip.Addr, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil {
		return false
	}
	f.held.expire(now)
	m := Match{Client: client, Source: source, Services: []string{service}}
	return len(f.held.matching(m)) > 0
}
