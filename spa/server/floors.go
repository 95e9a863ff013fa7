package server

import (
	"crypto/sha256"
	"errors"
	"net/netip"
	"slices"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
)

// A floor makes an end final: a request to open that was first stamped at or before the floor of
// something that it asks for is refused, however late it arrives. Floors are in the journal before
// the end is answered.
//
// A client that closes a service sets the floor at its own stamp: the same clock stamped what it
// made before. What the administrator takes away gets its floor a window after the server's time,
// because no packet tells how far the client's clock is ahead: if all of them are held back, it
// seems to be behind. What a client made before may be stamped up to a window later. The price is
// that a client is refused for as long as its own clock is not past that.

// Floors of a client that stand for more than a name or a port. None of them is either.
const (
	everything = "*"
	somePort   = "*/*" // raised with each port, for those who ask for many
	byPort     = "/"   // of what is asked for by its port
)

// manyPorts is how many ports of a request do not have a floor each any more.
const manyPorts = 16

var errSuperseded = errors.New("closed or revoked since this request was first made, or up to a window before")

// superseded reports whether something that the request asks to open was closed or taken away after
// it was first stamped: a packet that was held back must not open it again.
func (s *Server) superseded(k *spa.Knock, from netip.Addr, first time.Time) bool {
	if k.Type != spa.TypeOpen {
		return false
	}
	topics := []topic{ofClient(k.Client.Name, everything), ofAddress(from)}
	for _, what := range append(service.Names(k.Services), s.ports(k.Services, somePort)...) {
		topics = append(topics, ofClient(k.Client.Name, what))
	}
	if slices.ContainsFunc(k.Services, func(service service.Service) bool { return service.Name == "" }) {
		topics = append(topics, ofClient(k.Client.Name, byPort))
	}
	return slices.ContainsFunc(topics, func(t topic) bool { return !first.After(s.journal.FloorOf(t)) })
}

// closed refuses what the client asked for before it closed these services: under their names, and
// under any other that opens one of their ports.
func (s *Server) closed(k *spa.Knock) error {
	for _, what := range slices.Concat(service.Names(k.Services), s.ports(k.Services, everything), []string{somePort}) {
		if err := s.journal.SetFloor(ofClient(k.Client.Name, what), k.Time); err != nil {
			return err
		}
	}
	return nil
}

// ports returns each port of the services, where it is, as a floor has it; where they are many, what
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
func (s *Server) final(now time.Time) time.Time { return now.Add(s.config.Window) }

// takeAway refuses requests for these services that the client can have made up to now, also once they
// are given back.
func (s *Server) takeAway(client string, services []string, now time.Time) {
	for _, service := range services {
		if err := s.journal.SetFloor(ofClient(client, service), s.final(now)); err != nil {
			s.log.Error("packets already on their way may still open a service that was revoked", "client", client,
				"service", service, "error", err)
		}
	}
}

// supersede refuses what is superseded: with the policy's reason where it has one, which lasts.
func (s *Server) supersede(event audit.Event) audit.Event {
	if err := s.policy.Closable(event.Knock, event.Time); err != nil {
		return s.refuse(event, audit.Denied, reasonFor(err), err)
	}
	return s.refuse(event, audit.Denied, spa.ReasonSuperseded, errSuperseded)
}

// topic is the name of a floor in the journal.
type topic = [16]byte

// ofClient names the floor of what a client may ask for.
func ofClient(client, what string) topic {
	sum := sha256.Sum256([]byte(client + "\x00" + what))
	return topic(sum[:16])
}

// ofAddress names the floor of an address, whoever asks: no client is without a name.
func ofAddress(a netip.Addr) topic { return ofClient("", a.Unmap().WithZone("").String()) }
