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
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
	"sallyport/spa/client/doctor"
)

// tolerable is how far the clocks may differ before it is worth a warning: a gateway accepts 30s by default.
const tolerable = 5 * time.Second

// report prints an answer: a line for each service, or a JSON object.
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
		case client.Over:
			if until := a.Until(i); granted(a, i).For == 0 || !until.After(time.Now()) {
				continue // its end is reported as an error
			}
			fallthrough
		case client.Opened:
			_, err = fmt.Fprintln(cmd.OutOrStdout(), k.openLine(a, i, service, time.Now()))
		case client.Closed:
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is closed on %s%s\n", k.label(a, i, service),
				k.plan.Profile.Name, k.forWhom(a))
		case client.Sent:
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "asked %s to %s %s; it sends no receipts, so the result is not known\n",
				k.plan.Profile.Name, k.plan.Command.Type, k.label(a, i, service))
		}
		if err != nil {
			return fmt.Errorf("printing the answer: %w", err)
		}
	}
	return nil
}

// openLine returns "ssh (tcp/22) is open on gw for 203.0.113.7 until 14:03:30 (30s)", or "restart-web was started on
// gw …" if all that the service has is a program.
func (k *knock) openLine(a client.Answer, i int, service service.Service, now time.Time) string {
	what := "is open"
	switch told := granted(a, i); {
	case told.Started && len(told.Ports) == 0 && !told.More:
		what = "was started"
	case told.Started && told.Once:
		what = "is open for one connection, and its program was started,"
	case told.Started:
		what = "is open, and its program was started,"
	case told.Once:
		what = "is open for one connection"
	}
	line := fmt.Sprintf("%s %s on %s%s", k.label(a, i, service), what, k.plan.Profile.Name, k.forWhom(a))
	until := a.Until(i)
	if until.IsZero() {
		return line
	}
	return fmt.Sprintf("%s until %s (%s)", line, cli.Clock(until, now), rounded(granted(a, i).For))
}

// granted returns the receipt's entry for the i-th service, or zero without a receipt.
func granted(a client.Answer, i int) spa.Granting {
	if a.Receipt == nil || i >= len(a.Receipt.Services) {
		return spa.Granting{}
	}
	return a.Receipt.Services[i]
}

// ports returns a service's ports from the receipt, else from the profile.
func (k *knock) ports(a client.Answer, i int, service service.Service) []string {
	told := granted(a, i)
	all := told.Ports
	if len(all) == 0 {
		all = k.plan.Ports(service)
	}
	out := []string{} // not nil: [] in JSON, not null
	for _, p := range all {
		out = append(out, p.String())
	}
	if told.More {
		out = append(out, "…")
	}
	return out
}

// label returns "ssh (tcp/22)", or "tcp/22" for a request by port.
func (k *knock) label(a client.Answer, i int, service service.Service) string {
	ports := k.ports(a, i, service)
	if service.Name == "" || len(ports) == 0 {
		return service.String()
	}
	return fmt.Sprintf("%s (%s)", service, strings.Join(ports, ", "))
}

// forWhom returns " for 203.0.113.7". The receipt of a close does not repeat the network that the command named.
func (k *knock) forWhom(a client.Answer) string {
	n := a.LetIn()
	if a.Verdict == client.Closed && k.letIn.IsValid() {
		n = k.letIn.Prefix
	}
	if !n.IsValid() {
		return ""
	}
	return " for " + service.NetworkText(n)
}

// rounded formats a duration, rounded to the second if it is at least that long.
func rounded(d time.Duration) string {
	if d.Abs() >= time.Second {
		d = d.Round(time.Second)
	}
	return service.FormatDuration(d)
}

// caution prints to standard error what differs from the request, or may soon cause trouble.
func (k *knock) caution(cmd *cobra.Command, a client.Answer) {
	name := k.plan.Profile.Name
	if a.Offset.Abs() > tolerable {
		word := "behind"
		if a.Offset < 0 {
			word = "ahead of"
		}
		cli.Warn(cmd, "this machine's clock is %s %s that of %s, which ignores knocks once the difference exceeds its "+
			"window (30s by default); keep the clock right with NTP", rounded(a.Offset.Abs()), word, name)
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

// translated reports that the gateway let in another address than the one that this machine sends from.
func translated(name string, in, own netip.Addr) string {
	if in.Is4() != own.Is4() {
		return fmt.Sprintf("%s let in %v, but this machine reaches it from %v: a translator (NAT64) is in between, and "+
			"only connections through it get in", name, in, own)
	}
	return fmt.Sprintf("%s let in %v, but this machine reaches it from %v: connections on another path than the knock "+
		"(a VPN, a proxy) do not get in", name, in, own)
}

// failure returns the command's exit for an answer that is not a success, else nil.
func (k *knock) failure(a client.Answer) *cli.Exit {
	name := k.plan.Profile.Name
	switch {
	case a.Verdict == client.Refused && a.Receipt.Status == spa.ReasonTooEarly:
		return k.tooEarly(a.Receipt.Again, time.Now())
	case a.Verdict == client.Refused:
		return &cli.Exit{Code: cli.Refused, Hint: k.app.advice(k.plan.Profile, k.plan.Command.Services, a.Receipt.Status),
			Err: fmt.Errorf("%s refused %s: %s", name, k.services(), a.Receipt.Status)}
	case a.Verdict == client.Over:
		return &cli.Exit{Code: cli.Failed, Hint: "the answer came too late; run the command again",
			Err: fmt.Errorf("%s is no longer open on %s: %s", k.services(), name, k.ended(a, time.Now()))}
	case a.Verdict != client.Silent:
		return nil
	case errors.Is(a.Err, client.ErrNoAnswer):
		hint, more := k.suspects(a.Route)
		return &cli.Exit{Code: cli.NoAnswer, Hint: hint, More: more,
			Err: fmt.Errorf("no answer from %s (%s)", name, a.Gateway)}
	}
	return &cli.Exit{Code: cli.Failed, Err: fmt.Errorf("knocking on %s: %w", name, a.Err)}
}

// mostWait is longer than the window of any usual gateway.
const mostWait = 10 * time.Minute

// tooEarly returns the exit for a knock that came too early to a gateway that has just started.
func (k *knock) tooEarly(again, now time.Time) *cli.Exit {
	wait := max(time.Second, again.Sub(now.Round(0)))
	exit := &cli.Exit{Code: cli.Refused, Err: fmt.Errorf("%s has just started and accepts no knocks for another %s",
		k.plan.Profile.Name, seconds(wait)),
		Hint: fmt.Sprintf("run it again then, or let it wait: --timeout %s", seconds(wait+client.DefaultTimeout))}
	if wait > mostWait {
		exit.Hint = "ask the gateway's administrator: its clock was ahead before the restart (spa-server status; " +
			"spa-server init --reset-clock)"
	}
	return exit
}

// ended lists the grants that are over, and when each ended.
func (k *knock) ended(a client.Answer, now time.Time) string {
	var ends []string
	for i, service := range k.plan.Command.Services {
		if until := a.Until(i); granted(a, i).For == 0 || !until.After(now) {
			ends = append(ends, fmt.Sprintf("the grant of %s ended at %s", service, cli.Clock(until, now)))
		}
	}
	return strings.Join(ends, ", ")
}

// services lists the requested services.
func (k *knock) services() string {
	var names []string
	for _, s := range k.plan.Command.Services {
		names = append(names, s.String())
	}
	return strings.Join(names, ", ")
}

// advice returns the hint for a refusal of services.
func (a *app) advice(p *keys.Profile, asked []service.Service, reason spa.Status) string {
	switch reason {
	case spa.ReasonExpired:
		return "ask the gateway's administrator for a new key"
	case spa.ReasonNoService:
		if host, ok := a.hostAmong(asked); ok {
			return fmt.Sprintf("%s is a host, not a service: --host %[1]s", host)
		}
		return knownServices(p)
	case spa.ReasonNotAllowed:
		return fmt.Sprintf("ask the gateway's administrator to allow it for the client %s", p.Client)
	case spa.ReasonSourceRequired:
		return "state this machine's public address: --source ADDRESS; behind NAT ask the gateway's administrator"
	case spa.ReasonNetwork:
		return fmt.Sprintf("a network must contain this machine's address as the gateway sees it, and no address "+
			"of the gateway; the gateway's administrator allows more for the client %s: "+
			"%[2]s set %[1]s widest4=24 (or widest6, delegate)", p.Client, doctor.KeyTool(p))
	case spa.ReasonNotNow:
		return "try again at an allowed time, or ask the gateway's administrator for other hours"
	case spa.ReasonTooManyGrants, spa.ReasonTooManyPorts:
		return "close what is no longer needed (spa-client close SERVICE), or wait until it ends"
	case spa.ReasonTooManyPerHour:
		return "wait, or ask the gateway's administrator for a higher limit"
	case spa.ReasonSuperseded:
		return "run the command again if you still want it; after a revocation or a narrower file of the client " +
			"the gateway keeps refusing for its window (30s by default)"
	case spa.ReasonOtherFamily:
		return "use the gateway's other address family, IPv4 or IPv6: --source with an address of this machine in that family"
	case spa.ReasonIDReused:
		return "run the command again"
	case spa.ReasonTooEarly:
		return "wait half a minute, then run it again"
	case spa.ReasonNoUses:
		return "have a new recovery page printed on the gateway: spa-keygen rotate " + p.Client
	case spa.ReasonNoProgram:
		return "try again later, or ask the gateway's administrator: spa-server status and its log have the reason"
	}
	return "ask the gateway's administrator: the gateway's log has the reason"
}

// hostAmong returns a requested service that is the name of a host: perhaps --host was intended.
func (a *app) hostAmong(asked []service.Service) (string, bool) {
	names, _ := a.names()
	for _, s := range asked {
		if s.Name != "" && slices.Contains(names, s.Name) {
			return s.Name, true
		}
	}
	return "", false
}

// knownServices lists the services in a host's profile.
func knownServices(p *keys.Profile) string {
	if names := serviceNames(p); len(names) > 0 {
		return "services known for " + p.Name + ": " + strings.Join(names, ", ")
	}
	return "the token of " + p.Name + " names no service: ask for the ports that you were given, such as tcp/22"
}

// suspects returns the hints if there is no answer: what to do, the usual causes, and what may still be true. The
// gateway does not say.
func (k *knock) suspects(r client.Route) (first string, more []string) {
	p := k.plan.Profile
	first = "find out why: spa-client doctor --host " + p.Name
	causes := []string{
		"wrong address (" + list(r.To, func(to netip.AddrPort) string { return to.Addr().String() }) + ")",
		"UDP port " + list(r.To, func(to netip.AddrPort) string { return strconv.Itoa(int(to.Port())) }) + " blocked",
		"clock off (here it is " + time.Now().UTC().Format(time.DateTime) + " UTC)",
		"key revoked",
		"gateway down, or started less than 30s ago",
	}
	if k.plan.Command.LetIn.IsValid() {
		causes = append(causes, "an earlier version of the gateway, which does not know --let-in")
	}
	if r.Source.IsValid() {
		causes = append([]string{"the gateway sees another address than " + r.Source.String() +
			", which was stated (try --source observed)"}, causes...)
	}
	more = []string{"likely: " + strings.Join(causes, "; ")}
	switch {
	case !p.Receipts:
		more = append(more, "this gateway sends no receipts, and the port did not accept connections")
	case k.plan.Command.Type == spa.TypeOpen:
		more = append(more, "if only the answer was lost, the port is open: try it")
	}
	return first, more
}

// list joins the different texts of some addresses.
func list(to []netip.AddrPort, text func(netip.AddrPort) string) string {
	var out []string
	for _, t := range to {
		if s := text(t); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return strings.Join(out, " or ")
}

// describe prints what would be sent, without secrets.
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
		length = " for the gateway's default time"
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
	if c.LetIn.IsValid() {
		fmt.Fprintf(w, "  let in   %s\n", service.NetworkText(c.LetIn))
	}
	fmt.Fprintf(w, "  to       %s, UDP, one packet of %d to %d bytes, retried until it is answered, for at most %s\n",
		list(r.To, netip.AddrPort.String), spa.MinLen, spa.MaxLen, rounded(c.Timeout))
}
