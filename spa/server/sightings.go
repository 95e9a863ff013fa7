package server

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/server/feed"
)

// sightings are what the server knows of each client's packets since the start. Only packets that its key made count,
// so there are no more sightings than clients. A reload keeps them.
type sightings struct {
	mu     sync.Mutex
	of     map[string]*sighting
	last   []firewall.Grant // the last ones, granted at the same time
	lastAt time.Time
}

// sighting is what the server knows of one client's packets.
type sighting struct {
	at              time.Time // of the last spent packet; zero: none
	from            netip.Addr
	offset          time.Duration // its clock minus ours at that packet
	oldKey, oldGate bool          // that packet was made with a replaced key
	stale           staleness     // since then
	granted         []firewall.Grant
	ids             []keys.ID // of its keys at that packet
	fleet           bool      // a client of the fleet, then
	told            time.Time // when it last got the answer that it knocks too early
}

// staleness counts packets that are too old, or from the future. They may be copies, so no decision depends on the
// clock that they suggest.
type staleness struct {
	packets int
	at      time.Time
	from    netip.Addr
	offset  time.Duration
}

// mostGranted is how many of a client's grants are remembered for the sessions that outlive them.
const mostGranted = 32

func newSightings() *sightings { return &sightings{of: make(map[string]*sighting)} }

// note records what an event says about its client, which the packet has authenticated.
func (s *sightings) note(e audit.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Verdict.Spent() {
		s.spent(e)
		return
	}
	if refused, ok := errors.AsType[*spa.Refused](e.Err); ok && !refused.Time.IsZero() {
		w := s.client(e.Client)
		w.stale = staleness{w.stale.packets + 1, e.Time, e.From.Addr(), refused.Time.Sub(e.Time)}
	}
}

// mayTell reports whether the client may be told now that it knocks too early, and records that it is.
func (s *sightings) mayTell(client string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.client(client)
	if now.Sub(w.told).Abs() < earlyPause {
		return false
	}
	w.told = now
	return true
}

func (s *sightings) client(name string) *sighting {
	w, ok := s.of[name]
	if !ok {
		w = &sighting{}
		s.of[name] = w
	}
	return w
}

func (s *sightings) spent(e audit.Event) {
	w := s.client(e.Client)
	w.at, w.from, w.offset = e.Time, e.From.Addr(), e.Knock.Time.Sub(e.Time)
	w.oldKey, w.oldGate = feed.OldKey(e.Knock), e.Knock.OldGate
	w.ids, w.fleet, w.stale = e.Knock.Client.IDs(), e.Knock.Client.Fleet, staleness{}
	if e.Verdict == audit.Granted {
		s.last, s.lastAt = feed.GrantsOf(e), e.Time
		w.addGrants(s.last)
	}
}

// installed records what a client was granted by another gateway of the site.
func (s *sightings) installed(c *keys.Client, grants []firewall.Grant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.client(c.Name)
	w.ids, w.fleet = c.IDs(), c.Fleet
	w.addGrants(grants)
}

// addGrants keeps the latest grants, each once.
func (w *sighting) addGrants(grants []firewall.Grant) {
	for _, g := range grants {
		w.granted = slices.DeleteFunc(w.granted, func(old firewall.Grant) bool {
			return old.Service == g.Service && old.Network() == g.Network()
		})
		w.granted = append(w.granted, g)
	}
	if extra := len(w.granted) - mostGranted; extra > 0 {
		w.granted = slices.Delete(w.granted, 0, extra)
	}
}

// ids returns the ids of the keys that the client had when it was last heard of.
func (s *sightings) ids(client string) []keys.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.of[client]; w != nil {
		return slices.Clone(w.ids)
	}
	return nil
}

// granted returns the client's grants since the start, as far as they are remembered.
func (s *sightings) granted(client string) []firewall.Grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.of[client]; w != nil {
		return slices.Clone(w.granted)
	}
	return nil
}

// grantedTo returns grants of these clients since the start that let in any address of a network, as far as they are
// remembered; of none, all.
func (s *sightings) grantedTo(of netip.Prefix, clients []string) (list []firewall.Grant) {
	for _, client := range clients {
		for _, g := range s.granted(client) {
			if !of.IsValid() || g.Network().Overlaps(of) {
				list = append(list, g)
			}
		}
	}
	return list
}

// clientsOf returns the clients that such grants are remembered of.
func (s *sightings) clientsOf(of netip.Prefix) (clients []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for client, w := range s.of {
		if slices.ContainsFunc(w.granted, func(g firewall.Grant) bool { return g.Network().Overlaps(of) }) {
			clients = append(clients, client)
		}
	}
	return clients
}

// isLocal reports whether a client was seen here, and was not one of the fleet then.
func (s *sightings) isLocal(client string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.of[client]
	return w != nil && len(w.ids) > 0 && !w.fleet
}
