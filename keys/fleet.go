package keys

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sallyport/keys/service"
)

// The labels with which a fleet's keys and ids are derived for each of its gateways.
const (
	labelFleetServer   = "sallyport 1 server"
	labelFleetClient   = "sallyport 1 gateway"
	labelFleetClientID = "sallyport 1 client id"
	labelFleetGate     = "sallyport 1 gateway gate"
)

// A FleetID names a fleet of gateways. It is no secret. Zero is not an id.
type FleetID [16]byte

// NewFleetID returns a random fleet id.
func NewFleetID() FleetID {
	var id FleetID
	rand.Read(id[:])
	return id
}

// ParseFleetID parses what String returns: 32 lower-case hex digits, not all zero.
func ParseFleetID(s string) (FleetID, error) {
	if err := checkHex(s, 32); err != nil {
		return FleetID{}, fmt.Errorf("a fleet id is %w", err)
	}
	var id FleetID
	hex.Decode(id[:], []byte(s)) // 32 hex digits always are one
	if id == (FleetID{}) {
		return FleetID{}, errors.New("a fleet id must not be zero")
	}
	return id, nil
}

// String returns 32 hex digits.
func (id FleetID) String() string { return hex.EncodeToString(id[:]) }

// Server returns the server id of a site: a gateway, or the gateways that share one address. The fleet's clients need
// nothing but its name to knock there.
func (id FleetID) Server(site string) ServerID {
	h := sha256.New()
	h.Write([]byte(labelFleetServer))
	h.Write(id[:])
	h.Write([]byte(site))
	return ServerID(h.Sum(nil))
}

// At returns the key of a client of a fleet at one of its servers. k is the client's key for the fleet, which no
// gateway has.
func (k Key) At(server ServerID) Key {
	if k.m == nil {
		return Key{}
	}
	e := extract(&(*k.m).master)
	return KeyFromBytes(e.expand(labelFleetClient, server[:]...))
}

// IDAt returns the id of a client of a fleet at one of its servers. Ids at different servers cannot be linked without
// the key.
func (k Key) IDAt(server ServerID) ID {
	if k.m == nil {
		return 0
	}
	e := extract(&(*k.m).master)
	b := e.expand(labelFleetClientID, server[:]...)
	return max(1, ID(binary.BigEndian.Uint64(b[:])))
}

// At returns the gate key of one of the servers of a fleet. g is the fleet's gate key.
func (g GateKey) At(server ServerID) GateKey {
	if g.m == nil {
		return GateKey{}
	}
	e := extract(&(*g.m).master)
	return GateKeyFromBytes(e.expand(labelFleetGate, server[:]...))
}

// At returns the gate keys of one of the servers of a fleet.
func (g Gates) At(server ServerID) Gates {
	return Gates{Current: g.Current.At(server), Previous: g.Previous.At(server), Until: g.Until}
}

// MaxGateways is the most gateways that the profile of a fleet lists.
const MaxGateways = 1000

// ErrGateway means that the profile of a fleet cannot tell where a gateway is.
var ErrGateway = errors.New("the profile does not list this gateway, and has no domain to find it in")

// IsFleet reports whether the profile is that of a fleet: see Gateway.
func (p *Profile) IsFleet() bool { return p.Fleet != FleetID{} }

// Gateway returns the profile for one gateway of a fleet, named FLEET/GATEWAY. A gateway that the profile does not list
// is at its name in the fleet's domain. The name may be written with the domain. Of a locked profile, the result lacks
// the keys.
func (p *Profile) Gateway(name string) (*Profile, error) {
	name = p.inDomain(name)
	if err := service.ValidName(name); err != nil {
		return nil, err
	}
	address := p.Gateways[name]
	if address == "" && p.Address == "" {
		return nil, fmt.Errorf("%s/%s: %w", p.Name, name, ErrGateway)
	}
	if address == "" {
		address = name + "." + p.Address
	}
	if err := validAddress(address); err != nil { // with a long name it is too long
		return nil, fmt.Errorf("%s/%s: %w", p.Name, name, err)
	}
	server := p.Fleet.Server(name)
	return &Profile{Name: p.Name + "/" + name, Address: address, KnockPorts: p.KnockPorts, ServerID: server,
		Gate: p.Gate.At(server), Client: p.Client, ID: p.Key.IDAt(server), Key: p.Key.At(server),
		Services: p.Services, Receipts: p.Receipts, Source: p.Source}, nil
}

// inDomain returns what stands before the fleet's domain in a name, as ssh hands it over; other names as they are.
func (p *Profile) inDomain(name string) string {
	suffix := "." + strings.TrimSuffix(p.Address, ".")
	n := len(name) - len(suffix)
	if p.Address == "" || n < 0 || !strings.EqualFold(name[n:], suffix) {
		return name
	}
	return strings.ToLower(name[:n])
}

// SplitHost returns the two parts of FLEET/GATEWAY; false if host has no slash.
func SplitHost(host string) (fleet, gateway string, ok bool) { return strings.Cut(host, "/") }

// validFleet checks what the profile of a fleet has besides that of a host, and what it lacks.
func (p *Profile) validFleet() error {
	switch {
	case !p.IsFleet() && len(p.Gateways) > 0:
		return errors.New("are only for fleets")
	case p.IsFleet() && (p.Recovery || p.ID != 0 || p.ServerID != ServerID{}):
		return errors.New("a fleet has no recovery keys, and ids only at its gateways")
	case len(p.Gateways) > MaxGateways:
		return fmt.Errorf("must list at most %d gateways", MaxGateways)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Gateways)) {
		if err := service.ValidName(name); err != nil {
			return err
		}
		address := p.Gateways[name]
		if address == "" && p.Address != "" {
			continue
		}
		if address == "" {
			return fmt.Errorf("%s has no address, and the fleet no domain", name)
		}
		if err := validAddress(address); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// validDomain checks the domain in which the gateways of a fleet are; empty if the profile lists all of them.
func validDomain(domain string) error {
	if domain == "" {
		return nil
	}
	host, port, err := service.SplitAddress(domain)
	if err == nil {
		_, _, err = service.SplitAddress("a." + domain)
	}
	if err != nil {
		return err
	}
	if _, err := netip.ParseAddr(host); err == nil || port != 0 {
		return errors.New("a domain is a name without a port")
	}
	return nil
}
