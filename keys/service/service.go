// Package service holds what files and requests name: services and ports, addresses of gateways, networks,
// durations, and hours of the week. Each is parsed in one place and in one spelling.
package service

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Proto is a transport protocol by its IANA number.
type Proto uint8

// The protocols whose ports can be requested.
const (
	TCP Proto = 6
	UDP Proto = 17
)

// String returns "tcp" or "udp".
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return "proto-" + strconv.Itoa(int(p))
}

func (p Proto) Valid() bool { return p == TCP || p == UDP }

func parseProto(s string) (Proto, error) {
	switch s {
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	}
	return 0, errors.New("the protocol must be tcp or udp")
}

// Ports is a range of ports of one protocol, from Low to High inclusive. The zero
// value is no port and invalid. Ports can be compared with ==.
type Ports struct {
	Proto     Proto
	Low, High uint16
}

// ParsePorts parses "tcp/22" or "tcp/60000-60010", the forms that Ports.String
// prints, and nothing else.
func ParsePorts(s string) (Ports, error) {
	proto, rest, ok := strings.Cut(s, "/")
	if !ok {
		return Ports{}, portsError(s, errors.New("it must look like tcp/22 or tcp/60000-60010"))
	}
	p, err := parseProto(proto)
	if err != nil {
		return Ports{}, portsError(s, err)
	}
	lowText, highText, isRange := strings.Cut(rest, "-")
	low, err := parsePort(lowText)
	if err != nil {
		return Ports{}, portsError(s, err)
	}
	if !isRange {
		return Ports{Proto: p, Low: low, High: low}, nil
	}
	high, err := parsePort(highText)
	if err != nil {
		return Ports{}, portsError(s, err)
	}
	if high <= low {
		return Ports{}, portsError(s, errors.New("a range must end above its start"))
	}
	return Ports{Proto: p, Low: low, High: high}, nil
}

func portsError(s string, err error) error {
	return fmt.Errorf("ports %q: %w", s, err)
}

// parsePort is portNumber with an error.
func parsePort(s string) (uint16, error) {
	n, ok := portNumber(s)
	if !ok {
		return 0, errors.New("a port is a number from 1 to 65535")
	}
	return n, nil
}

// String returns the form that ParsePorts reads.
func (p Ports) String() string {
	s := p.Proto.String() + "/" + strconv.Itoa(int(p.Low))
	if p.High == p.Low {
		return s
	}
	return s + "-" + strconv.Itoa(int(p.High))
}

// Contains reports whether the port of that protocol is in the range.
func (p Ports) Contains(proto Proto, port uint16) bool {
	return p.Proto == proto && p.Low <= port && port <= p.High
}

// Covers reports whether the port of that protocol is in one of the ranges.
func Covers(ranges []Ports, proto Proto, port uint16) bool {
	return slices.ContainsFunc(ranges, func(p Ports) bool { return p.Contains(proto, port) })
}

func (p Ports) Valid() bool { return p.Proto.Valid() && p.Low > 0 && p.Low <= p.High }

// Service is what a request names: a service of the server by its name or, if Name is empty, a port. The zero value is
// invalid. Services can be compared with ==.
type Service struct {
	Name  string
	Proto Proto
	Port  uint16
}

// ParseService parses a name ("ssh") or a port ("tcp/8443"), the forms that
// Service.String prints, and nothing else.
func ParseService(s string) (Service, error) {
	if !strings.Contains(s, "/") {
		if err := ValidName(s); err != nil {
			return Service{}, fmt.Errorf("service: %w", err)
		}
		return Service{Name: s}, nil
	}
	p, err := ParsePorts(s)
	if err != nil {
		return Service{}, err
	}
	if p.Low != p.High {
		return Service{},
			portsError(s, errors.New("a request names services or single ports, not a range"))
	}
	return Service{Proto: p.Proto, Port: p.Low}, nil
}

// String returns the form that ParseService reads.
func (s Service) String() string {
	if s.Name != "" {
		return s.Name
	}
	return Ports{Proto: s.Proto, Low: s.Port, High: s.Port}.String()
}

func (s Service) Valid() bool {
	if s.Name != "" {
		return s.Proto == 0 && s.Port == 0 && ValidName(s.Name) == nil
	}
	return s.Proto.Valid() && s.Port > 0
}

// Names returns the services as files and people name them.
func Names(services []Service) []string {
	names := make([]string, len(services))
	for i, s := range services {
		names[i] = s.String()
	}
	return names
}
