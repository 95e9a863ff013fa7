package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"sallyport/keys"
)

// cause is a possible reason for the silence, and the weight of its evidence.
type cause struct {
	weight int // the heaviest is the likeliest
	Finding
}

// silence ranks the possible reasons for the silence by the other findings, and without any by how often they occur.
func (e *examination) silence() []Finding {
	if e.answered() || !e.unheard() {
		return nil
	}
	if heard := e.heard(); len(heard) > 0 {
		return heard
	}
	found := []Finding{{Step: StepSilence, State: Bad,
		Text: e.profile.Name + " does not answer. It is silent about everything that it does not accept, so " +
			"the cause is uncertain; " +
			"likely causes, most likely first"}}
	if !e.profile.Receipts {
		found[0].Text = e.profile.Name + " sends no receipts, and the ports did not open; likely causes, most likely first"
	}
	causes := []cause{e.noServer(), e.blocked(), e.wrongClock(), e.wrongSource(), e.revoked(), e.otherKey()}
	if !e.profile.Receipts {
		causes = append(causes, e.notAllowed())
	}
	if _, _, ok := keys.SplitHost(e.profile.Name); ok {
		causes = append(causes, e.notAtThisGateway(), e.storeAway())
	}
	causes = slices.DeleteFunc(causes, func(c cause) bool { return c.weight == 0 })
	slices.SortStableFunc(causes, func(a, b cause) int { return cmp.Compare(b.weight, a.weight) })
	for _, c := range causes {
		c.Step, c.State = StepSilence, Suspect
		found = append(found, c.Finding)
	}
	return found
}

// heard returns evidence that the gateway received the knock although no answer came: a requested port was dark before
// and is not any more.
func (e *examination) heard() []Finding {
	var found []Finding
	for _, f := range e.families {
		now := slices.DeleteFunc(slices.Clone(f.before),
			func(t touch) bool { return t.service != e.first() || t.reach != dark })
		e.touchAll(f, now, glance, false)
		for _, t := range now {
			if t.reach == open || t.reach == refused {
				found = append(found, e.describeHeard(f, t))
			}
		}
	}
	return found
}

func (e *examination) describeHeard(f *family, t touch) Finding {
	at := fmt.Sprintf("%s (tcp/%d, %s) was dark before the knock", t.service, t.port, f.name)
	finding := Finding{Step: StepSilence, State: Bad,
		Text: at + " and accepts connections now: the gateway received the knock, but its answer does not arrive",
		Advice: "UDP from the knock port is blocked, on the way back or on this machine; or the gateway no longer sends " +
			"receipts: import a new token",
		Sign: `spa-server watch shows it granted to "` + e.profile.Client + `"`}
	if t.reach == refused {
		finding.Text = at + " and refuses connections now: the gateway opened it, but nothing listens there"
		finding.Advice = "ask the gateway's administrator: is the service running?"
	}
	return finding
}

// unheard reports whether something was sent that should have been answered.
func (e *examination) unheard() bool {
	return slices.ContainsFunc(e.families, func(f *family) bool {
		return slices.ContainsFunc(f.knocks, func(k knocked) bool { return k.unheard() })
	})
}

// blocked is the cause that the knock does not arrive.
func (e *examination) blocked() cause {
	return cause{50, Finding{
		Text: "UDP to " + portList(e.knockPorts()) + " is blocked on the way",
		Advice: "try from another network; an administrator can add a port that few networks block: knock_ports = [62201, " +
			"{ port = 443, shared = true }]",
		Sign: "spa-server watch shows nothing at all while you knock, though other clients get in",
	}}
}

// noServer is the cause that no server receives the knock. A port that is open without a knock is evidence for it. An
// ICMP error from the knock port is not: hosts send it even if the server receives knocks.
func (e *examination) noServer() cause {
	c := cause{45, Finding{
		Text:   "spa-server is not running there or has just started, or " + e.gateways() + " is not the gateway",
		Advice: "it accepts no knocks for 30s after a start: try again; then ask the gateway's administrator",
		Sign:   "spa-server status reports that no server is running; or it runs at another address",
	}}
	for _, f := range e.families {
		for _, t := range f.before {
			if t.reach == open {
				c.weight = 80
				c.Text += fmt.Sprintf(": %s is open without a knock, as if the guard were missing", t.service)
				return c
			}
		}
	}
	return c
}

func (e *examination) gateways() string {
	texts := make([]string, len(e.families))
	for i, f := range e.families {
		texts[i] = f.gateway
	}
	return strings.Join(texts, " or ")
}

// wrongClock is the cause that the packet is too late or too early by its own stamp.
func (e *examination) wrongClock() cause {
	c := cause{40, Finding{
		Text: fmt.Sprintf("this machine's clock (%s) or the gateway's is wrong by more than %s",
			time.Now().UTC().Format(time.DateTime+" MST"), tolerance),
		Advice: "compare it with a time server: --ntp HOST; keep it right with NTP",
		Sign:   `spa-server watch shows "` + e.profile.Client + `" with "stale packet" and how far its clock is off`,
	}}
	if e.behind == nil {
		return c
	}
	if e.behind.Abs() >= tolerance {
		c.weight, c.Text = 100, fmt.Sprintf("this machine's clock is wrong by %s", e.behind.Abs().Round(time.Second))
		c.Advice = "set it, and keep it right with NTP"
		return c
	}
	c.weight, c.Text, c.Advice = 10, "the gateway's clock is wrong; this machine's is right", "ask its administrator"
	return c
}

// wrongSource is the cause that the packet states another address than it comes from.
func (e *examination) wrongSource() cause {
	for _, f := range e.families {
		for _, k := range f.knocks {
			if stated := k.answer.Route.Source; stated.IsValid() {
				return cause{60, Finding{
					Text: fmt.Sprintf("the gateway sees another address than %s, which the request states: NAT on the "+
						"way translates it", stated),
					Advice: "state no address: --source observed, if your administrator allows that",
					Sign: `spa-server watch shows "` + e.profile.Client +
						`" with "the stated source address is not the observed one"`,
				}}
			}
		}
	}
	return cause{20, Finding{
		Text:   "the client's file on the gateway does not let it knock from this network (from, deny)",
		Advice: "ask the gateway's administrator from where you may knock",
		Sign:   `spa-server watch shows "` + e.profile.Client + `" with "addresses that the client may not knock from"`,
	}}
}

func (e *examination) revoked() cause {
	return cause{30, Finding{
		Text:   "the key was revoked, or replaced by a newer one",
		Advice: "ask the gateway's administrator for a new token",
		Sign: `spa-server watch shows "` + e.profile.Client +
			`" with "revoked client" or "retired key"; ` + KeyTool(e.profile) + ` list shows it`,
	}}
}

func (e *examination) otherKey() cause {
	return cause{25, Finding{
		Text:   "the profile does not belong to this gateway: the gateway was set up again, or the token is for another one",
		Advice: "import a newer token: spa-client import FILE",
		Sign:   `spa-server status counts packets with "wrong gate tag", "unknown client" or "wrong mac"`,
	}}
}

// notAtThisGateway is the cause that a gateway of a fleet does not know the client, or the fleet.
func (e *examination) notAtThisGateway() cause {
	fleet, gateway, _ := keys.SplitHost(e.profile.Name)
	return cause{42, Finding{
		Text: fmt.Sprintf("the fleet %s has no gateway %s, the client may not use it, or it has not taken over the bundle "+
			"that says so", fleet, gateway),
		Advice: "ask the fleet's administrator",
		Sign: `spa-fleet status shows which bundle each gateway has; spa-server status counts packets with "wrong gate ` +
			`tag" or "unknown client"`,
	}}
}

// storeAway is the cause that gateways with one address cannot ask each other whether a packet was used.
func (e *examination) storeAway() cause {
	return cause{22, Finding{
		Text:   "if several gateways share this address: their store is away, so they answer no client of the fleet",
		Advice: "ask the fleet's administrator",
		Sign:   "spa-server status reports that the store of the site is away, or that no agent is connected",
	}}
}

// KeyTool returns the command with which the administrator of a host, or of a fleet, manages its clients.
func KeyTool(p *keys.Profile) string {
	if _, _, gateway := keys.SplitHost(p.Name); gateway || p.IsFleet() {
		return "spa-fleet client"
	}
	return "spa-keygen"
}

// notAllowed is the cause that only a receipt would reveal.
func (e *examination) notAllowed() cause {
	return cause{35, Finding{
		Text:   "the gateway refused the knock without an answer: the service is not allowed, or a limit is reached",
		Advice: "ask the gateway's administrator",
		Sign:   `spa-server watch shows "` + e.profile.Client + `" denied, with the reason`,
	}}
}
