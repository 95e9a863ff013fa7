package check

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/config"
)

// routes is which packets the kernel forwards, on any interface.
type routes struct{ four, six bool }

// answersWithin is how long a machine behind this host has to accept a connection.
const answersWithin = time.Second

// connect reports whether a TCP port accepts connections from this host.
func connect(ctx context.Context, to netip.AddrPort) error {
	d := net.Dialer{Timeout: answersWithin}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// checkForward looks for what keeps forwarded ports from leading where they should.
func checkForward(ctx context.Context, c *config.Config, h *host) []Finding {
	if c.Firewall.Backend == "dry-run" {
		return nil
	}
	var found []Finding
	said := make(map[string]bool)
	for i := range c.Services {
		s := &c.Services[i]
		for _, to := range s.Forward {
			if to.Addr().IsValid() {
				found = append(found, h.machine(ctx, s, to, said)...)
			}
		}
		found = append(found, h.unreached(s)...)
	}
	return found
}

// machine returns what is wrong with the way to a machine. What was said once is not said again.
func (h *host) machine(ctx context.Context, s *config.Service, to netip.AddrPort, said map[string]bool) []Finding {
	var found []Finding
	say := func(severity Severity, text, advice string) {
		if f := (Finding{Severity: severity, Subject: "service." + s.Name + ".forward", Text: text,
			Advice: advice}); !said[text] {
			said[text] = true
			found = append(found, f)
		}
	}
	a := to.Addr()
	if h.links != nil && h.has(a) {
		say(Problem, fmt.Sprintf("%s is an address of this host, not a machine behind it", a),
			fmt.Sprintf("# write forward = \":%d\"", to.Port()))
		return found
	}
	if h.rules != nil {
		if _, err := h.rules.Toward(a); err != nil {
			say(Problem, fmt.Sprintf("there is no route to %s: no client reaches it", a),
				fmt.Sprintf("ip route get %s\n# shows the way, once there is one", a))
			return found
		}
	}
	on, sysctl, family := h.routes.four, "net.ipv4.ip_forward", "IPv4"
	if a.Is6() {
		on, sysctl, family = h.routes.six, "net.ipv6.conf.all.forwarding", "IPv6"
	}
	if !on {
		say(Problem, fmt.Sprintf("this host does not forward %s packets: no client reaches a machine behind it", family),
			"sysctl -w "+sysctl+"=1\n# and the same in a file of /etc/sysctl.d")
	}
	if !slices.ContainsFunc(s.Ports, func(p service.Ports) bool { return p.Proto == service.TCP }) {
		return found
	}
	if err := h.connect(ctx, to); err != nil {
		say(Warning, fmt.Sprintf("%s does not accept a connection from this host: %v", to, err),
			"# start what should listen there, or correct the address")
	}
	return found
}

// unreached returns a finding if a program listens on a forwarded port of this host, where no client reaches it.
func (h *host) unreached(s *config.Service) []Finding {
	if !s.Forwards() {
		return nil
	}
	var idle []listener
	one := said{}
	for _, l := range h.listeners {
		if service.Covers(s.Ports, l.Proto, l.local.Port()) && !l.local.Addr().IsLoopback() {
			idle = append(idle, l)
			one.add(single(l.Proto, l.local.Port()))
		}
	}
	if len(idle) == 0 {
		return nil
	}
	return []Finding{{
		Severity: Notice, Subject: "service." + s.Name + ".forward",
		Text: fmt.Sprintf("%s listens on %s of this host, and the port is forwarded: no client reaches that program",
			by(idle), portList(one.ports)),
		Advice: "# forward another port, if clients should reach it",
	}}
}
