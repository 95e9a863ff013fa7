package check

import (
	"fmt"
	"strconv"
	"strings"

	"sallyport/keys/service"
	"sallyport/spa/config"
)

// ownPorts are the ports that the kernel assigns to unbound local sockets (ip-sysctl.rst: ip_local_port_range,
// ip_local_reserved_ports).
type ownPorts struct {
	first, last uint16
	reserved    []service.Ports // without a protocol
	text        string          // the reserved ports as text
}

func parseOwnPorts(between, reserved string) (ownPorts, error) {
	o := ownPorts{text: strings.TrimSpace(reserved)}
	if _, err := fmt.Sscan(between, &o.first, &o.last); err != nil {
		return ownPorts{}, fmt.Errorf("ip_local_port_range: %w", err)
	}
	for part := range strings.SplitSeq(o.text, ",") {
		if part == "" {
			continue
		}
		low, high, ranged := strings.Cut(part, "-")
		if !ranged {
			high = low
		}
		from, err := strconv.ParseUint(low, 10, 16)
		if err != nil {
			return ownPorts{}, fmt.Errorf("ip_local_reserved_ports: %w", err)
		}
		to, err := strconv.ParseUint(high, 10, 16)
		if err != nil {
			return ownPorts{}, fmt.Errorf("ip_local_reserved_ports: %w", err)
		}
		o.reserved = append(o.reserved, service.Ports{Low: uint16(from), High: uint16(to)})
	}
	return o, nil
}

// picked returns the ports of a range that the kernel may assign, and false if there are none.
func (o ownPorts) picked(p service.Ports) (service.Ports, bool) {
	found := service.Ports{Proto: p.Proto}
	for port := int(max(p.Low, o.first)); port <= int(min(p.High, o.last)); port++ {
		if o.isReserved(uint16(port)) {
			continue
		}
		if found.Low == 0 {
			found.Low = uint16(port)
		}
		found.High = uint16(port)
	}
	return found, found.Low != 0
}

func (o ownPorts) isReserved(port uint16) bool {
	for _, r := range o.reserved {
		if r.Low <= port && port <= r.High {
			return true
		}
	}
	return false
}

// checkOwnPorts reports guarded UDP ports and knock ports that the kernel may assign to local sockets.
func checkOwnPorts(c *config.Config, h *host) []Finding {
	if c.Firewall.Mode == "admit" || c.Firewall.Backend == "dry-run" {
		return nil
	}
	var found []Finding
	say := func(severity Severity, subject string, p service.Ports, text string) {
		p, ok := h.own.picked(p)
		if !ok {
			return
		}
		reserve := strings.TrimPrefix(fmt.Sprintf("%s,%d-%d", h.own.text, p.Low, p.High), ",")
		found = append(found, Finding{
			Severity: severity, Subject: subject,
			Text: fmt.Sprintf("%v: the kernel assigns these ports to local sockets (ip_local_port_range %d-%d): %s", p,
				h.own.first, h.own.last, text),
			Advice: fmt.Sprintf("sysctl -w net.ipv4.ip_local_reserved_ports=%s\n# and the same in a file of /etc/sysctl.d",
				reserve),
		})
	}
	for _, s := range c.Services {
		if len(s.Addresses) > 0 {
			continue
		}
		for _, p := range s.Ports {
			if p.Proto == service.UDP {
				say(Warning, "service."+s.Name+".ports", p, "a peer that such a socket has queried can keep the port open for "+
					"itself, and reach a later listener")
			}
		}
	}
	for _, k := range c.KnockPorts {
		if !k.Shared && !c.Bound() {
			say(Notice, "knock_ports", service.Ports{Proto: service.UDP, Low: k.Port, High: k.Port},
				"replies to such a socket are not tracked, and another firewall may drop them")
		}
	}
	return found
}
