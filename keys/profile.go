package keys

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sallyport/keys/service"
)

// A Profile is what a client knows about one host: the contents of hosts/NAME.toml, and
// of an enrolment token.
type Profile struct {
	Name       string              // what the client calls the host
	Address    string              // what SplitAddress reads
	KnockPorts []uint16            // UDP ports that carry a knock
	ServerID   ServerID            // the gateway
	Gate       GateKey             // shared by the gateway's clients
	Client     string              // what the gateway calls the client
	ID         ID                  // names Key on the wire
	Key        Key                 // shared with the gateway
	Services   map[string][]string // ports of each service as text: "tcp/22", "tcp/60000-60010"
	Receipts   bool                // the gateway answers
	Recovery   bool                // the key is good for a few uses: nothing may use it unasked
	Source     string              // "" (auto), "observed", an address, or "stun:HOST"

	// Fleet is set in the profile of a fleet: then Name is the fleet's, Address is the domain of its gateways or empty,
	// Gate and Key are those from which the gateways' are derived, and ServerID and ID are zero. See Gateway.
	Fleet    FleetID
	Gateways map[string]string // the addresses of gateways by name; empty: the name in the domain
}

// Ports returns a service's ports as far as the profile knows them.
func (p *Profile) Ports(s service.Service) []service.Ports {
	if s.Name == "" {
		return []service.Ports{{Proto: s.Proto, Low: s.Port, High: s.Port}}
	}
	var list []service.Ports
	for _, text := range p.Services[s.Name] {
		if ports, err := service.ParsePorts(text); err == nil {
			list = append(list, ports)
		}
	}
	return list
}

// The limits of a profile. A token has single bytes for these numbers.
const (
	MaxKnockPorts   = 32
	MaxServices     = 128
	MaxServicePorts = 64
)

// A fieldError describes what is wrong with one field of a profile, named by its key in the file.
type fieldError struct {
	key string
	err error
}

// Valid returns an error if the profile cannot be written. It quotes no secret.
func (p *Profile) Valid() error {
	if bad := p.firstInvalid(false); bad != nil {
		return fmt.Errorf("a profile's %s: %w", bad.key, bad.err)
	}
	return nil
}

// firstInvalid skips the keys of a locked profile, which are sealed.
func (p *Profile) firstInvalid(locked bool) *fieldError {
	for _, f := range []fieldError{
		{"name", service.ValidName(p.Name)},
		p.validAddress(),
		{"knock_ports", validKnockPorts(p.KnockPorts)},
		{"server_id", present(p.IsFleet() || p.ServerID != ServerID{})},
		{"gate_key", present(locked || !p.Gate.IsZero())},
		{"client", service.ValidName(p.Client)},
		{"id", present(locked || p.IsFleet() || p.ID != 0)},
		{"key", present(locked || !p.Key.IsZero())},
		{"services", validServices(p.Services)},
		{"source", validSource(p.Source)},
		{"gateways", p.validFleet()},
	} {
		if f.err != nil {
			return &f
		}
	}
	return nil
}

func present(ok bool) error {
	if !ok {
		return errors.New("missing")
	}
	return nil
}

func (p *Profile) validAddress() fieldError {
	if p.IsFleet() {
		return fieldError{"domain", validDomain(p.Address)}
	}
	return fieldError{"address", validAddress(p.Address)}
}

func validAddress(s string) error {
	_, _, err := service.SplitAddress(s)
	return err
}

func validKnockPorts(ports []uint16) error {
	if len(ports) == 0 || len(ports) > MaxKnockPorts {
		return fmt.Errorf("must list 1 to %d ports", MaxKnockPorts)
	}
	for i, port := range ports {
		if port == 0 || slices.Contains(ports[:i], port) {
			return errors.New("knock ports are 1 to 65535, each once")
		}
	}
	return nil
}

func validServices(services map[string][]string) error {
	if len(services) > MaxServices {
		return fmt.Errorf("must list at most %d services", MaxServices)
	}
	for _, name := range slices.Sorted(maps.Keys(services)) {
		if err := validService(name, services[name]); err != nil {
			return err
		}
	}
	return nil
}

func validService(name string, ports []string) error {
	if err := service.ValidName(name); err != nil {
		return err
	}
	if len(ports) == 0 || len(ports) > MaxServicePorts {
		return fmt.Errorf("service %s must have 1 to %d ports", name, MaxServicePorts)
	}
	for i, port := range ports {
		if err := validPorts(port); err != nil {
			return err
		}
		if slices.Contains(ports[:i], port) {
			return fmt.Errorf("service %s lists a port twice", name)
		}
	}
	return nil
}

// validSource accepts "" for auto, the only way to write it in a Profile and a token.
func validSource(s string) error {
	if s == "" || s == "observed" {
		return nil
	}
	if host, ok := strings.CutPrefix(s, "stun:"); ok {
		return validAddress(host)
	}
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.Zone() != "" || ip.Is4In6() || ip.String() != s {
		return errors.New(`a source is "auto", "observed", an address, or "stun:HOST"`)
	}
	return nil
}
