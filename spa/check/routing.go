package check

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"sallyport/firewall"
	"sallyport/firewall/survey"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// How bridges, routing and connection tracking treat packets, apart from the rules.

// bridging is which hooks the kernel applies to bridged packets (br_netfilter).
type bridging struct {
	loaded       bool
	calls4       bool // net.bridge.bridge-nf-call-iptables
	calls6       bool // net.bridge.bridge-nf-call-ip6tables
	filtersVLANs bool // net.bridge.bridge-nf-filter-vlan-tagged
}

// checkBridges looks for services on machines to which a bridge of this host forwards packets past the guard.
func checkBridges(c *config.Config, h *host) []Finding {
	if h.rules == nil || c.Firewall.Mode == "admit" || c.Firewall.Backend == "dry-run" {
		return nil
	}
	var found []Finding
	said := make(map[string]bool)
	for _, s := range c.Services {
		for _, to := range s.Machines() {
			bridge, ok := h.rules.Bridge(to)
			if !ok || bridge.Bridge.Ports < 2 {
				continue
			}
			text, set := h.bridging.misses(*bridge.Bridge, to.Is4())
			key := bridge.Name + set
			if text == "" || said[key] {
				continue
			}
			said[key] = true
			found = append(found, Finding{
				Severity: Warning,
				Subject:  "service." + s.Name + map[bool]string{false: ".addresses", true: ".forward"}[s.Forwards()],
				Text: fmt.Sprintf("%s is behind the bridge %s, and %s the guard: from another port of the bridge it is "+
					"reachable without a knock", to, bridge.Name, text),
				Advice: h.bridging.command(set),
			})
		}
	}
	return found
}

// misses returns which packets bypass the guard, and the sysctl that makes them pass through it.
func (b bridging) misses(bridge survey.Bridge, is4 bool) (text, sysctl string) {
	calls, name := b.calls6 || bridge.Calls6, "net.bridge.bridge-nf-call-ip6tables"
	if is4 {
		calls, name = b.calls4 || bridge.Calls4, "net.bridge.bridge-nf-call-iptables"
	}
	switch {
	case !b.loaded || !calls:
		return "packets that it forwards bypass", name
	case !b.filtersVLANs:
		return "frames with a VLAN or priority tag that it forwards bypass",
			"net.bridge.bridge-nf-filter-vlan-tagged"
	}
	return "", ""
}

func (b bridging) command(sysctl string) string {
	set := "sysctl -w " + sysctl + "=1"
	if !b.loaded {
		set = "modprobe br_netfilter && " + set
	}
	return set + "\n# and the same in a file of /etc/sysctl.d"
}

// shortestSilence is how long a session may be silent on a host whose connection tracking has more or less the usual
// settings. The kernel's default is five days.
const shortestSilence = time.Hour

// checkForgets checks whether connection tracking forgets sessions that are merely silent.
func checkForgets(c *config.Config, h *host) []Finding {
	keeps := func(s config.Service) bool {
		return !s.Cuts() && slices.ContainsFunc(s.Ports, func(p service.Ports) bool { return p.Proto == service.TCP })
	}
	after := h.conntrack.established
	if after == 0 || after >= shortestSilence || c.Firewall.Backend == "dry-run" ||
		!slices.ContainsFunc(c.Services, keeps) {
		return nil
	}
	return []Finding{{
		Severity: Notice, Subject: "nf_conntrack_tcp_timeout_established",
		Text: fmt.Sprintf("%v: a session that is silent for longer is forgotten, and hangs once its grant is over, until "+
			"its client knocks again", after),
		Advice: "sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=432000\n# and the same in " +
			"a file of /etc/sysctl.d",
	}}
}

// checkMarks looks for routing rules that match a packet mark which the guard alters: the guard sets a bit of the
// connection mark, and another tool copies all bits to packets.
func checkMarks(c *config.Config, h *host) []Finding {
	if h.rules == nil || c.Firewall.Mode == "admit" || c.Firewall.Backend == "dry-run" {
		return nil
	}
	mark := cmp.Or(c.Firewall.Mark, uint32(firewall.DefaultMark))
	at, restores := h.rules.Restores(mark)
	if !restores {
		return nil
	}
	var found []Finding
	for _, m := range h.rules.Marks {
		if m.Mask&mark == 0 || m.Value&mark != 0 {
			continue
		}
		ip := map[bool]string{true: "ip", false: "ip -6"}[m.V4]
		was, will := fwmark(m.Value, m.Mask), fwmark(m.Value, m.Mask&^mark)
		advice := fmt.Sprintf("%s rule add priority %d fwmark %s lookup %d && %[1]s rule del priority %[2]d fwmark "+
			"%[5]s\n# and the same where your rules are kept", ip, m.Priority, will, m.Table, was)
		if m.More {
			advice = fmt.Sprintf("# in the rule of priority %d write fwmark %s", m.Priority, will)
		}
		found = append(found, Finding{
			Severity: Problem, Subject: ip + " rule fwmark " + was,
			Text: fmt.Sprintf("%s copies the connection mark to packets, and the guard sets the bit %#x in it: this rule does "+
				"not match the sessions that the guard lets in, so their replies leave by another interface", at, mark),
			Advice: advice,
		})
	}
	return found
}

// fwmark formats a mark as ip-rule(8) does.
func fwmark(value, mask uint32) string {
	if mask == ^uint32(0) {
		return fmt.Sprintf("%#x", value)
	}
	return fmt.Sprintf("%#x/%#x", value, mask)
}
