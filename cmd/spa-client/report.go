package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/client"
)

// tolerable is how far the clocks may differ before it is worth a warning: a
// gateway takes 30 s unless it was told otherwise.
const tolerable = 5 * time.Second

// report prints what an answer says: a line a service, or an object for a program.
func (k *knock) report(cmd *cobra.Command, a client.Answer) error {
	k.caution(cmd, a)
	if k.quiet {
		return nil
	}
	if k.json {
		return cli.JSON(cmd, k.answerJSON(a))
	}
	for i, service := range k.plan.Command.Services {
		var err error
		switch a.Verdict {
		case client.Opened:
			_, err = fmt.Fprintln(cmd.OutOrStdout(), k.openLine(a, i, service, time.Now()))
		case client.Closed:
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is closed on %s%s\n", k.label(a, i, service), k.plan.Profile.Name, forSource(a))
		case client.Sent:
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "asked %s to %s %s: it sends no receipts, so nothing confirms it\n",
				k.plan.Profile.Name, k.plan.Command.Type, k.label(a, i, service))
		}
		if err != nil {
			return fmt.Errorf("printing the answer: %w", err)
		}
	}
	return nil
}

// openLine is "ssh (tcp/22) is open on gw for 203.0.113.7 until 14:03:30 (30s)".
func (k *knock) openLine(a client.Answer, i int, service spa.Service, now time.Time) string {
	line := fmt.Sprintf("%s is open on %s%s", k.label(a, i, service), k.plan.Profile.Name, forSource(a))
	until := a.Until(i)
	if until.IsZero() {
		return line
	}
	if granted(a, i).For == 0 { // the answer to the first try was lost, and its time is over
		return fmt.Sprintf("%s was open on %s%s until %s, which is over", k.label(a, i, service), k.plan.Profile.Name, forSource(a), clock(until, now))
	}
	return fmt.Sprintf("%s until %s (%s)", line, clock(until, now), rounded(granted(a, i).For))
}

// granted is what a receipt says of the i-th service: nothing, if there is no receipt.
func granted(a client.Answer, i int) spa.Granting {
	if a.Receipt == nil || i >= len(a.Receipt.Services) {
		return spa.Granting{}
	}
	return a.Receipt.Services[i]
}

// ports are a service's ports as the gateway tells them, else as the profile has them.
func (k *knock) ports(a client.Answer, i int, service spa.Service) []string {
	told := granted(a, i)
	all := told.Ports
	if len(all) == 0 {
		all = k.plan.Ports(service)
	}
	out := []string{} // not nil: a list also for a program
	for _, p := range all {
		out = append(out, p.String())
	}
	if told.More {
		out = append(out, "…")
	}
	return out
}

// label is "ssh (tcp/22)", or "tcp/22" for a port that was asked for by itself.
func (k *knock) label(a client.Answer, i int, service spa.Service) string {
	ports := k.ports(a, i, service)
	if service.Name == "" || len(ports) == 0 {
		return service.String()
	}
	return fmt.Sprintf("%s (%s)", service, strings.Join(ports, ", "))
}

func forSource(a client.Answer) string {
	if a.Receipt == nil || !a.Receipt.Source.IsValid() {
		return ""
	}
	return " for " + a.Receipt.Source.String()
}

// clock is a time of today, or with its date.
func clock(t, now time.Time) string {
	if t.Format(time.DateOnly) == now.In(t.Location()).Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// rounded is a duration to the second, where it has one.
func rounded(d time.Duration) string {
	if d.Abs() >= time.Second {
		d = d.Round(time.Second)
	}
	return keys.FormatDuration(d)
}

// caution says on standard error what is not as it was asked for, or soon will not be.
func (k *knock) caution(cmd *cobra.Command, a client.Answer) {
	name := k.plan.Profile.Name
	if a.Offset.Abs() > tolerable {
		word := "behind"
		if a.Offset < 0 {
			word = "ahead of"
		}
		cli.Warn(cmd, "this machine's clock is %s %s that of %s: it answers only while they agree to 30s, unless it is set otherwise", rounded(a.Offset.Abs()), word, name)
	}
	if in, yes := a.Translated(); yes && a.Verdict == client.Opened {
		cli.Warn(cmd, "%s", translated(name, in, a.Route.Own))
	}
	asked := k.plan.Command.For
	for i, service := range k.plan.Command.Services {
		got := granted(a, i).For
		if a.Verdict == client.Opened && a.Receipt != nil && got+time.Second < asked {
			cli.Note(cmd, "%s granted %s of the %s asked for %s", name, rounded(got), rounded(asked), service)
		}
	}
}

// translated says that the gateway let in another address than this machine has on the way there.
func translated(name string, in, own netip.Addr) string {
	if in.Is4() != own.Is4() {
		return fmt.Sprintf("%s let in %v, and this machine reaches it from %v: a translator (NAT64) stands between, and only connections through it get in", name, in, own)
	}
	return fmt.Sprintf("%s let in %v, but this machine reaches it from %v: what does not take the way of the knock (a VPN, a proxy) does not get in", name, in, own)
}

// failure is an answer that is no success as the command's end, and nil for one that is.
func (k *knock) failure(a client.Answer) *cli.Exit {
	name := k.plan.Profile.Name
	switch {
	case a.Verdict == client.Refused:
		return &cli.Exit{Code: cli.Refused, Hint: advice(k.plan.Profile, a.Receipt.Status),
			Err: fmt.Errorf("%s refused %s: %s", name, k.services(), a.Receipt.Status)}
	case a.Verdict != client.Silent:
		return nil
	case errors.Is(a.Err, client.ErrNoAnswer):
		return &cli.Exit{Code: cli.NoAnswer, Hint: k.suspects(a),
			Err: fmt.Errorf("no answer from %s (%s)", name, a.Gateway)}
	}
	return &cli.Exit{Code: cli.Failed, Err: fmt.Errorf("knocking on %s: %w", name, a.Err)}
}

// services lists what was asked for.
func (k *knock) services() string {
	var names []string
	for _, s := range k.plan.Command.Services {
		names = append(names, s.String())
	}
	return strings.Join(names, ", ")
}

// advice is what to do about a refusal.
func advice(p *keys.Profile, reason spa.Status) string {
	switch reason {
	case spa.ReasonExpired:
		return "ask the gateway's administrator for a new key"
	case spa.ReasonNoService:
		return "this host is known to have " + strings.Join(serviceNames(p), ", ")
	case spa.ReasonNotAllowed:
		return "the gateway's administrator decides what this key may open"
	case spa.ReasonSourceRequired:
		return "where no NAT changes this machine's address, state it: --source ADDRESS"
	case spa.ReasonNotNow:
		return "try again at a time at which it is allowed, or ask the gateway's administrator for other hours"
	case spa.ReasonTooManyGrants, spa.ReasonTooManyPorts:
		return "close what is no longer needed, or wait until it ends"
	case spa.ReasonTooManyPerHour:
		return "wait, or ask the gateway's administrator for a higher limit"
	case spa.ReasonSuperseded:
		return "run the command again if it is still wanted; after a revocation the gateway refuses for as long as its window (30s by default)"
	case spa.ReasonOtherFamily:
		return "knock at an address of the gateway of the other family: its own IPv4 or IPv6 address after --host, or a --source of that family"
	case spa.ReasonIDReused:
		return "run the command again if it is still wanted"
	}
	return "the gateway's log says more: ask its administrator"
}

// suspects lists why there may be no answer. The gateway does not tell.
func (k *knock) suspects(a client.Answer) string {
	r := a.Route
	if !k.plan.Profile.Receipts {
		return "this gateway sends no receipts and the port did not accept connections: " + k.causes(r)
	}
	return "the gateway is silent on purpose about what it does not accept: " + k.causes(r)
}

// causes are the usual ones, with what this machine knows of each.
func (k *knock) causes(r client.Route) string {
	causes := []string{
		"is " + list(r.To, func(to netip.AddrPort) string { return to.Addr().String() }) + " its address and is it up?",
		"is UDP to port " + list(r.To, func(to netip.AddrPort) string { return strconv.Itoa(int(to.Port())) }) + " blocked on the way?",
		"is this machine's clock right (" + time.Now().UTC().Format(time.DateTime) + " UTC)?",
		"was the key revoked?",
	}
	if r.Source.IsValid() {
		causes = append(causes, "does it see another address than "+r.Source.String()+", which was stated (--source observed)?")
	}
	if k.plan.Profile.Receipts && k.plan.Command.Type == spa.TypeOpen {
		causes = append(causes, "are only its answers lost? then it is open all the same.")
	}
	return strings.Join(causes, " ")
}

// list joins what is different among some addresses.
func list(to []netip.AddrPort, text func(netip.AddrPort) string) string {
	var out []string
	for _, t := range to {
		if s := text(t); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return strings.Join(out, " or ")
}

// describe says what would be sent. Nothing secret is in it.
func (k *knock) describe(cmd *cobra.Command) error {
	if k.json {
		return k.describeJSON(cmd)
	}
	w := cmd.OutOrStdout()
	for _, r := range k.plan.Routes {
		k.describeRoute(w, r)
	}
	_, err := fmt.Fprintln(w, "nothing was sent")
	return err
}

func (k *knock) describeRoute(w io.Writer, r client.Route) {
	p, c := k.plan.Profile, k.plan.Command
	length := ""
	if c.Type == spa.TypeOpen {
		length = " for the time that the gateway gives it"
	}
	if c.For > 0 {
		length = " for " + rounded(c.For)
	}
	source := "the address that the gateway sees"
	if r.Source.IsValid() {
		source = r.Source.String() + ", stated in the request"
	}
	fmt.Fprintf(w, "%s (%s), as its client %s:\n", p.Name, r.Family(), p.Client)
	fmt.Fprintf(w, "  request  %s %s%s\n", c.Type, k.services(), length)
	fmt.Fprintf(w, "  source   %s\n", source)
	fmt.Fprintf(w, "  to       %s, UDP, one packet of %d to %d bytes, sent again until it is answered, for %s at most\n",
		list(r.To, netip.AddrPort.String), spa.MinLen, spa.MaxLen, rounded(c.Timeout))
}
