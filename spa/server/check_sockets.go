package server

import (
	"fmt"
	"slices"
	"strings"

	"sallyport/firewall/survey"
	"sallyport/spa"
	"sallyport/spa/config"
)

// checkKnockPorts looks for programs on knock ports that are said to be ours alone.
func checkKnockPorts(c *config.Config, h *host) []Finding {
	var found []Finding
	for _, k := range c.KnockPorts {
		served := h.listensForOthers(spa.UDP, k.Port)
		if !k.Shared && len(served) > 0 {
			found = append(found, Finding{Problem, "knock_ports", fmt.Sprintf("%s on this host serves udp/%d, and the guard keeps packets to it away", by(served), k.Port),
				fmt.Sprintf("another port, or { port = %d, shared = true }", k.Port)})
		}
		if k.Shared && len(served) == 0 {
			found = append(found, Finding{Odd, "knock_ports", fmt.Sprintf("udp/%d is said to be shared, and nothing on this host serves it: the host answers for the port that it is closed", k.Port),
				fmt.Sprintf("%d in place of { port = %[1]d, shared = true }", k.Port)})
		}
	}
	return found
}

// by names who holds sockets, as far as that is known.
func by(ls []listener) string {
	var names []string
	for _, l := range ls {
		names = append(names, l.held...)
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return "a program"
	}
	return strings.Join(names, ", ")
}

// sshServers are the names of processes that let people in by ssh.
var sshServers = []string{"sshd", "dropbear", "tinysshd"}

// checkSSH looks for an ssh server on a port that nothing guards.
func checkSSH(c *config.Config, h *host) []Finding {
	activated := sshSocketPorts(h.root)
	var found []Finding
	var seen []uint16
	for _, l := range h.listeners {
		port := l.local.Port()
		if l.Proto != spa.TCP || !lets(l, activated) || slices.Contains(seen, port) || !h.unguarded(c, l) {
			continue
		}
		seen = append(seen, port)
		who := "sshd"
		if slices.Contains(l.held, "systemd") {
			who = "sshd, by way of systemd's ssh.socket,"
		}
		found = append(found, Finding{Weak, fmt.Sprintf("tcp/%d", port), fmt.Sprintf("%s listens at %s, and no service guards it: strangers see it", who, l.local),
			fmt.Sprintf("add \"tcp/%d\" to the ports of a service, or have sshd listen elsewhere", port)})
	}
	return found
}

// lets reports whether it is an ssh server that waits there.
func lets(l listener, activated []uint16) bool {
	if slices.ContainsFunc(l.held, func(name string) bool { return slices.Contains(sshServers, name) }) {
		return true
	}
	return slices.Contains(l.held, "systemd") && slices.Contains(activated, l.local.Port())
}

// unguarded reports whether a stranger reaches a socket without a knock.
func (h *host) unguarded(c *config.Config, l listener) bool {
	if l.local.Addr().IsLoopback() || c.Guards(spa.Service{Proto: l.Proto, Port: l.local.Port()}) {
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

// checkServed looks for services behind whose ports there is nothing. A range is seldom used as a
// whole, and a UDP service may come to be when it is wanted.
func checkServed(c *config.Config, h *host) []Finding {
	if h.listeners == nil {
		return nil
	}
	var found []Finding
	for _, s := range c.Services {
		if expected(s) && !h.served(c, s) {
			found = append(found, Finding{Odd, "service." + s.Name, fmt.Sprintf("nothing on this host listens on %s, but for itself", portList(s.Ports)), "start what serves it, on an address that clients reach, or take the service out"})
		}
	}
	return found
}

// expected reports whether something should wait at a port of the service at all times.
func expected(s config.Service) bool {
	return len(s.Ports) > 0 && len(s.Addresses) == 0 &&
		!slices.ContainsFunc(s.Ports, func(p spa.Ports) bool { return p.Proto != spa.TCP || p.Low != p.High })
}

// served reports whether something waits at a port of the service, here or where DNAT leads.
func (h *host) served(c *config.Config, s config.Service) bool {
	ways := h.approaches(c)
	for _, p := range s.Ports {
		if len(h.listensForOthers(p.Proto, p.Low)) > 0 {
			return true
		}
		if h.rules == nil {
			continue
		}
		for _, is4 := range []bool{true, false} {
			if o, ok := h.judge(ways, is4, p.Proto, p.Low); ok && (o.Redirected || o.Verdict == survey.Perhaps) {
				return true
			}
		}
	}
	return false
}
