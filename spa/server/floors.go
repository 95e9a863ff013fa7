package server

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"slices"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/fleet/share"
)

// A floor makes an end final: an open request that was first stamped at or before the floor of something that it asks
// for is refused, however late it arrives. Floors are written to the journal before the end is answered.
//
// A client that closes a service sets the floor at its own stamp, because the same clock stamped its earlier packets.
// When the administrator takes something away, the floor is a window after the server's time: no packet shows how far
// the client's clock is ahead, and if all its packets are held back it seems to be behind. Earlier packets may be
// stamped up to a window later. The price is that the client is refused until its own clock is past that.

// A floor belongs to a key, not to the name of a client: a renamed file keeps it. A client gets each floor
// for all its keys.

// Floors of a key that cover more than one name or port. None of them can be a name or a port.
const (
	everything = "*"
	somePort   = "*/*" // raised with each port, for requests with many
	byPort     = "/"   // of everything requested by port
)

// manyPorts is the number of ports from which a request no longer has a floor for each.
const manyPorts = 16

var errSuperseded = errors.New("closed, revoked or taken out of the client's file after this request was first made, " +
	"or up to a window before it")

// superseded reports whether something that the request would open was closed or taken away after it was first
// stamped: a packet that was held back must not open it again.
func (s *Server) superseded(k *spa.Knock, from netip.Addr) bool {
	if k.Type != spa.TypeOpen {
		return false
	}
	topics := []topic{ofKey(k.KeyID, everything)}
	for _, whose := range whoseAddresses(k.Client) {
		topics = append(topics, ofAddress(whose, from))
		switch n := k.LetIn; {
		case !n.IsValid():
		case n.IsSingleIP():
			topics = append(topics, ofAddress(whose, n.Addr()))
		default:
			topics = append(topics, ofNetworks(whose, n.Addr()))
		}
	}
	for _, what := range append(service.Names(k.Services), s.ports(k.Services, somePort)...) {
		topics = append(topics, ofKey(k.KeyID, what))
	}
	if slices.ContainsFunc(k.Services, func(service service.Service) bool { return service.Name == "" }) {
		topics = append(topics, ofKey(k.KeyID, byPort))
	}
	return slices.ContainsFunc(topics, func(t topic) bool { return !k.First.After(s.journal.FloorOf(t)) })
}

// closed refuses open requests from before this close: for these services, and for any other that opens one of their
// ports.
func (s *Server) closed(event audit.Event) error {
	return s.setTopics(s.closeTopics(event.Knock), s.closesUpTo(event))
}

// closesUpTo returns the stamp up to which a close is final: its own, or at a shared address that of what it ends, if
// another device of the client has a clock that is ahead. The other members go by stamps alone.
func (s *Server) closesUpTo(event audit.Event) time.Time {
	k := event.Knock
	stamp := k.Time
	if s.shared.member == nil || !k.Client.Fleet {
		return stamp
	}
	names, of := s.closing(event), reach(event)
	for _, g := range s.firewall.GrantsOf(k.Client.Name, event.Time) {
		if slices.Contains(names, g.Service) && g.Network().Overlaps(of) && g.Asked.After(stamp) {
			stamp = g.Asked
		}
	}
	if last := s.final(event.Time); stamp.After(last) { // nothing was asked for with such a clock
		return last
	}
	return stamp
}

func (s *Server) closeTopics(k *spa.Knock) []topic {
	return s.topicsOfServices(k.Client.IDs(), k.Services)
}

func (s *Server) topicsOfServices(ids []keys.ID, services []service.Service) []topic {
	return topicsOf(ids, slices.Concat(service.Names(services), s.ports(services, everything), []string{somePort})...)
}

// setFloors sets the floor of each thing for each key.
func (s *Server) setFloors(ids []keys.ID, whats []string, stamp time.Time) error {
	return s.setTopics(topicsOf(ids, whats...), stamp)
}

func (s *Server) setTopics(topics []topic, stamp time.Time) error {
	var errs []error
	for _, t := range topics {
		errs = append(errs, s.journal.SetFloor(t, stamp))
	}
	return errors.Join(errs...)
}

// topicsOf returns the topic of each thing for each key.
func topicsOf(ids []keys.ID, whats ...string) []topic {
	topics := make([]topic, 0, len(ids)*len(whats))
	for _, id := range ids {
		for _, what := range whats {
			topics = append(topics, ofKey(id, what))
		}
	}
	return topics
}

// ports returns each port of the services, with its address, as named in floors; if there are many, the name that
// stands for them.
func (s *Server) ports(services []service.Service, many string) []string {
	var list []string
	for _, wanted := range services {
		for _, at := range s.policy.At(wanted) {
			for _, r := range s.policy.Ports(wanted) {
				if len(list)+int(r.High-r.Low) >= manyPorts {
					return []string{many}
				}
				for port := int(r.Low); port <= int(r.High); port++ {
					list = append(list, service.Service{Proto: r.Proto, Port: uint16(port)}.String()+" "+at.String())
				}
			}
		}
	}
	return list
}

// final is the floor of what the administrator takes away.
func (s *Server) final(now time.Time) time.Time {
	if s.shared.member != nil { // another member may have a longer window, and a clock that is behind
		return now.Add(max(s.config.Window, 2*share.Window))
	}
	return now.Add(s.config.Window)
}

// takeAway refuses requests for these services that can have been made with these keys up to now, even if the services
// are given back.
func (s *Server) takeAway(client string, ids []keys.ID, services []string, now time.Time) {
	if err := s.setFloors(ids, services, s.final(now)); err != nil {
		s.log.Error("packets already on their way may still open a service that was revoked", "client", client,
			"services", services, "error", err)
	}
}

// inherit gives the keys that are new to a client the floors of those that it had. Another member of the site may have
// had them before, and have granted with them what was closed or revoked since.
func (s *Server) inherit(before, after *keys.Client) {
	if s.shared.member == nil || after == nil || !before.Fleet || !after.Fleet {
		return
	}
	whats := []string{everything, somePort, byPort}
	for _, wanted := range named(slices.Concat(before.Allow, after.Allow)) {
		one := []service.Service{wanted}
		whats = slices.Concat(whats, service.Names(one), s.ports(one, everything))
	}
	for _, id := range after.IDs() {
		if slices.Contains(before.IDs(), id) {
			continue
		}
		for _, what := range whats {
			for _, had := range before.IDs() {
				if err := s.journal.SetFloor(ofKey(id, what), s.journal.FloorOf(ofKey(had, what))); err != nil {
					s.log.Error("packets already on their way may open a service that was closed or revoked", "client",
						after.Name, "service", what, "error", err)
				}
			}
		}
	}
}

// supersede refuses a superseded request: with the policy's reason if it has one, because that lasts.
func (s *Server) supersede(event audit.Event) audit.Event {
	if err := s.policy.Closable(event.Knock, event.Time); err != nil {
		return s.refuse(event, audit.Denied, reasonFor(err), err)
	}
	return s.refuse(event, audit.Denied, spa.ReasonSuperseded, errSuperseded)
}

// topic identifies a floor in the journal.
type topic = [16]byte

// ofKey identifies the floor of something that may be asked for with a key.
func ofKey(id keys.ID, what string) topic { return topicOf(id.String(), what) }

// Whose addresses are refused: no key has such an id.
const (
	anyone  = ""      // all clients, by this gateway
	ofFleet = "fleet" // clients of the fleet, by another member of the site
)

// whoseAddresses returns in whose floors of addresses a client is.
func whoseAddresses(c *keys.Client) []string {
	if c.Fleet {
		return []string{anyone, ofFleet}
	}
	return []string{anyone}
}

// ofAddress identifies the floor of an address.
func ofAddress(whose string, a netip.Addr) topic {
	return topicOf(whose, a.Unmap().WithZone("").String())
}

// ofNetworks identifies the floor of the networks that may have an address: none is wider than these bounds.
func ofNetworks(whose string, a netip.Addr) topic {
	widest := service.Widest6
	if a = a.Unmap().WithZone(""); a.Is4() {
		widest = service.Widest4
	}
	p, _ := a.Prefix(widest)
	return topicOf(whose, p.String())
}

func topicOf(whose, what string) topic {
	sum := sha256.Sum256([]byte(whose + "\x00" + what))
	return topic(sum[:16])
}
