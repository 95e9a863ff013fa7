package check

import (
	"fmt"
	"slices"

	"sallyport/firewall/survey"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// sshServers are the names of ssh server processes.
var sshServers = []string{"sshd", "dropbear", "tinysshd"}

// checkBeside looks for a second port at which strangers reach what a service guards: an ssh server on any port, and
// other ports of the program that listens on a guarded one. It ignores UDP: a client's sockets look like those of a
// server.
func checkBeside(c *config.Config, h *host) []Finding {
	units := socketUnits(h.root)
	var found []Finding
	var seen []uint16
	for _, l := range h.listeners {
		port := l.local.Port()
		if l.Proto != service.TCP || slices.Contains(seen, port) {
			continue
		}
		f, ok := h.beside(c, l, units)
		if !ok || !h.unguarded(c, l) {
			continue
		}
		seen = append(seen, port)
		found = append(found, f)
	}
	return found
}

// beside returns the finding if a socket is another way to a service.
func (h *host) beside(c *config.Config, l listener, units []socketUnit) (Finding, bool) {
	port := service.Ports{Proto: l.Proto, Low: l.local.Port(), High: l.local.Port()}
	if who := sshServer(l, units); who != "" {
		return Finding{
			Severity: Warning, Subject: port.String(),
			Text:   fmt.Sprintf("%s listens at %s, and no service guards it: strangers see it", who, l.local),
			Advice: fmt.Sprintf("# add %q to the ports of a service, or have sshd listen elsewhere", port),
		}, true
	}
	for _, g := range h.listeners {
		guarded := service.Service{Proto: g.Proto, Port: g.local.Port()}
		if g.Proto != l.Proto || g.local.Addr().IsLoopback() || !c.Guards(guarded) || !sameOwner(g, l, units) {
			continue
		}
		return Finding{
			Severity: Warning, Subject: port.String(),
			Text: fmt.Sprintf("%s serves the guarded %s and listens at %s too, which no service guards: strangers reach "+
				"it there", by([]listener{l}), guarded, l.local),
			Advice: fmt.Sprintf("# add %q to the ports of service.%s, or have it listen there on 127.0.0.1 only",
				port, serviceOf(c, guarded)),
		}, true
	}
	return Finding{}, false
}

// sshServer returns the name of the ssh server that listens on a socket, if any.
func sshServer(l listener, units []socketUnit) string {
	if slices.ContainsFunc(l.held, func(name string) bool { return slices.Contains(sshServers, name) }) {
		return "sshd"
	}
	if u, ok := unitOf(l, units); ok && u.startsSSH() {
		return "sshd, by way of systemd's " + u.name + ","
	}
	return ""
}

// sameOwner reports whether one process holds both sockets, or systemd holds them for one service.
func sameOwner(a, b listener, units []socketUnit) bool {
	ua, ok := unitOf(a, units)
	ub, ok2 := unitOf(b, units)
	return ok && ok2 && ua.service == ub.service ||
		slices.ContainsFunc(a.pids, func(pid int) bool { return slices.Contains(b.pids, pid) })
}

// serviceOf returns the name of the service that has a port.
func serviceOf(c *config.Config, s service.Service) string {
	for _, named := range c.Services {
		if service.Covers(named.Ports, s.Proto, s.Port) {
			return named.Name
		}
	}
	return ""
}

// unguarded reports whether a stranger can reach a socket without a knock.
func (h *host) unguarded(c *config.Config, l listener) bool {
	if l.local.Addr().IsLoopback() || c.Guards(service.Service{Proto: l.Proto, Port: l.local.Port()}) {
		return false
	}
	if h.rules == nil {
		return true
	}
	ways := h.approaches(c)
	if !l.local.Addr().IsUnspecified() {
		ways = h.waysTo(c, l.local.Addr())
	}
	for _, is4 := range []bool{true, false} {
		if o, ok := h.judge(ways, is4, l.Proto, l.local.Port()); ok && o.Verdict != survey.Drops {
			return true
		}
	}
	return false
}
