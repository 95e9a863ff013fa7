package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"sallyport/keys/service"
)

// Names of the files beside server.toml, and of three in the state directory: the journal, what programs of services
// are due, and how often recovery keys were used.
const (
	GateFile     = "gate.key"
	ClientsDir   = "clients"
	JournalFile  = "journal"
	ActionsFile  = "actions"
	RecoveryFile = "recovery"
)

// NewService returns a service of this name with the default times.
func NewService(name string, ports ...service.Ports) Service {
	return Service{Name: name, Ports: ports, For: defaultFor, MaxFor: defaultMaxFor, OnExpiry: keepSessions}
}

// String returns the service in the form that init accepts: "ssh=tcp/22".
func (s Service) String() string {
	texts := make([]string, len(s.Ports))
	for i, ports := range s.Ports {
		texts[i] = ports.String()
	}
	return s.Name + "=" + strings.Join(texts, ",")
}

// String returns the port as "udp/62201", with "(shared)" if the host serves it too.
func (k KnockPort) String() string {
	text := "udp/" + strconv.Itoa(int(k.Port))
	if k.Shared {
		text += " (shared)"
	}
	return text
}

// CheckAllow returns an error if an entry of a client's allow list ("ssh", "tcp/8443", "tcp/8000-8100") cannot be
// opened here, or only in part.
func (c *Config) CheckAllow(entry string) error {
	if !strings.Contains(entry, "/") {
		service, err := service.ParseService(entry)
		if err == nil && !c.Guards(service) {
			err = errors.New("this gateway has no such service")
		}
		return err
	}
	ports, err := service.ParsePorts(entry)
	if err != nil {
		return err
	}
	guarded := c.Guarded()
	for port := int(ports.Low); port <= int(ports.High); port++ {
		if !service.Covers(guarded, ports.Proto, uint16(port)) {
			return fmt.Errorf("no service of this gateway guards %s/%d", ports.Proto, port)
		}
		if s, why := c.named(ports.Proto, uint16(port)); why != "" {
			return fmt.Errorf("%s/%d belongs to %s, which %s: allow that by its name", ports.Proto, port, s.Name, why)
		}
	}
	return nil
}

// named returns a service with this port that is opened by its name only, and why: otherwise a client could have the
// port without the service's action, or a port that is not what it seems.
func (c *Config) named(proto service.Proto, port uint16) (s Service, why string) {
	for _, s := range c.Services {
		switch {
		case !service.Covers(s.Ports, proto, port):
		case s.Action.Any():
			return s, "runs a program"
		case s.Forwards():
			return s, "is forwarded"
		}
	}
	return Service{}, ""
}

// Guards reports whether s can be requested here: it is the name of a service, or a port of one.
func (c *Config) Guards(s service.Service) bool {
	if s.Name != "" {
		_, ok := c.Service(s.Name)
		return ok
	}
	return service.Covers(c.Guarded(), s.Proto, s.Port)
}
