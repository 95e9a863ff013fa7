package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/firewall"
	"sallyport/spa/server/control"
)

func newStatus(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the running server's state, its decisions, and whose clock is off",
		Long: `Asks the running spa-server since when it runs, what it guards and how, what it received
and decided, which clients knocked and whether their clocks are right, which of them still
use a replaced key, and which privileges the process has left.`,
		Example: `  spa-server status
  spa-server status --json | jq .capture.kernel_drops`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd, *dir, control.Request{Command: control.CommandStatus}, func(r control.Reply) error {
				if r.Status == nil {
					return nil
				}
				if asJSON {
					return cli.JSON(cmd, r.Status)
				}
				return printStatus(cmd.OutOrStdout(), r.Status)
			})
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

func printStatus(out io.Writer, s *control.Status) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(what, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	line("gateway", "%s at %s, process %d, version %s, protocol %d", s.Name, s.Address, s.PID, s.Version, s.Protocol)
	line("since", "%s (%v)", cli.Clock(s.Since, s.Now), s.Now.Sub(s.Since).Round(time.Second))
	line("knocks", "%s on %s", strings.Join(s.KnockPorts, " "), interfacesText(s))
	if s.Bound {
		line("", "by bound sockets: the host's firewall must let them through")
	}
	line("window", "%s, receipts %s", s.Window, onOff(s.Receipts))
	line("guards", "%s", orNone(strings.Join(s.Guards, " ")))
	line("firewall", "%s", s.Firewall.Sentence)
	line("guard", "%s", guardText(s))
	line("gate key", "%s", gateText(s))
	line("gate", "%s", kernelGateText(s.Gate))
	line("clients", "%d", s.Clients)
	fleetLines(line, s)
	for _, c := range s.LeftOut {
		line("", "%s CANNOT KNOCK until the file is fixed: %s", c.Client, c.Why)
	}
	line("grants", "%d live%s", s.Grants, lastGrantText(s))
	if s.Floor != nil {
		line("refusing", "knocks until %s: %s", cli.Clock(s.Floor.Until, s.Now), s.Floor.Reason)
	}
	line("journal", "%d packets remembered, %d of %d places taken", s.Journal.Live, s.Journal.Records, s.Journal.Room)
	if s.Journal.Damaged != "" {
		line("", "a damaged one was replaced: %s", s.Journal.Damaged)
	}
	recoveryLines(line, s)
	actionLines(line, s.Actions)
	auditLines(line, s)
	line("rights", "%s", rightsText(s.Rights))
	for _, p := range s.Processes {
		line("", "%s, process %d: %s", p.Name, p.PID, rightsText(p.Rights))
	}
	for _, note := range s.Rights.Notes { // includes those of the other processes
		line("", "%s", note)
	}
	capturedLines(line, s.Capture)
	for _, what := range slices.Sorted(maps.Keys(s.Decided)) {
		verdict, reason, _ := strings.Cut(what, ": ")
		line("", "%d %s%s", s.Decided[what], verdict, prefixed(": ", reason))
	}
	seenLines(line, s)
	return w.Flush()
}

// recoveryLines prints what is left of recovery keys.
func recoveryLines(line func(what, format string, args ...any), s *control.Status) {
	what := "recovery"
	for _, r := range s.Recovery {
		switch {
		case r.Lost != "":
			line(what, "%s CANNOT KNOCK: %s", r.Client, r.Lost)
		case r.Last.IsZero():
			line(what, "%s: %d of %d uses left", r.Client, r.Left, r.Uses)
		default:
			line(what, "%s: %d of %d uses left, the last was at %s", r.Client, r.Left, r.Uses, cli.Clock(r.Last, s.Now))
		}
		what = ""
	}
}

// actionLines prints what became of the programs of services.
func actionLines(line func(what, format string, args ...any), a *control.Actions) {
	if a == nil {
		return
	}
	line("programs", "%d running, %d waiting, by process %d", a.Running, a.Waiting, a.PID)
	if a.Trouble != "" {
		line("", "NONE CAN BE STARTED: %s", a.Trouble)
	}
	if a.Unsaved != "" {
		line("", "what was started could not be recorded: %s", a.Unsaved)
	}
	if a.Failed > 0 {
		line("", "%d of the end of a grant could not be started: they will be at the next start", a.Failed)
	}
	for _, u := range a.Unfit {
		line("", "%s IS REFUSED: %s", u.Service, u.Why)
	}
	for _, c := range a.Counts {
		line("", "%d %s of %s %s", c.Count, c.Hook, c.Service, c.What)
	}
}

// auditLines prints where decisions are recorded, and problems with that.
func auditLines(line func(what, format string, args ...any), s *control.Status) {
	a := s.Audit
	line("audit", "%s", cmp.Or(a.File, "none"))
	if a.Moved != "" {
		line("", "NOT THERE: %s", a.Moved)
		line("", "%s", a.Mend)
	}
	if a.Lost > 0 {
		line("", "%d lines LOST, the last at %s: %s", a.Lost, cli.Clock(a.LostAt, s.Now), a.LostWhy)
	}
}

func rightsText(r control.Privileges) string {
	files, calls := "no Landlock", "all system calls"
	if r.Landlock > 0 {
		files = fmt.Sprintf("Landlock ABI %d", r.Landlock)
	}
	if r.Calls > 0 {
		calls = fmt.Sprintf("%d system calls allowed", r.Calls)
	}
	return fmt.Sprintf("user %s, %s, no_new_privs %v, %s, %s", r.User, cmp.Or(r.Capabilities, "no capability"),
		r.NoNewPrivs, files, calls)
}

func interfacesText(s *control.Status) string {
	names := orNone(strings.Join(s.Interfaces, " "))
	if s.All {
		return "all interfaces, now " + names
	}
	return names
}

func guardText(s *control.Status) string {
	switch f := s.Firewall; {
	case f.Backend == firewall.BackendDryRun:
		return "none: a dry run shuts and opens nothing"
	case f.Missing && f.Mode == "admit":
		return "the sets for grants are MISSING, so no client can be let in; the log names them"
	case f.Mode == "admit":
		return "your own table shuts the ports; grants that a reload of it drops are restored"
	case f.Missing:
		return "MISSING: guarded ports may be open; the log says why it cannot be restored"
	case !f.Trial.IsZero():
		return fmt.Sprintf("on trial: removed at %s unless %s connects through a knock", cli.Clock(f.Trial, s.Now),
			cmp.Or(f.TrialBy, "someone"))
	case f.Unkept:
		return "in place; its keeper has ENDED: if this server is killed too, another tool can flush it (systemctl restart " +
			"spa-server starts a new one)"
	case f.Persists:
		return "in place; no other tool can flush it, even while no server runs"
	}
	return "in place; if another tool flushes it, only a running server restores it"
}

func gateText(s *control.Status) string {
	if !s.Gate.Previous {
		return "one"
	}
	old := 0
	for _, c := range s.Seen {
		if c.OldGate {
			old++
		}
	}
	return fmt.Sprintf("two: the old one is good until %s; clients that used it last: %d", cli.Clock(s.Gate.Until, s.Now),
		old)
}

// kernelGateText returns where the kernel checks the tag, and why not elsewhere.
func kernelGateText(g control.Gate) string {
	text := map[string]string{
		"socket": "in the kernel, on the server's sockets",
		"xdp":    "in the kernel, on " + strings.Join(g.XDP, ", ") + " and the server's sockets",
		"none":   "in the server",
	}[g.Kernel]
	if len(g.Why) > 0 {
		text += ": " + strings.Join(g.Why, "; ")
	}
	return text
}

func lastGrantText(s *control.Status) string {
	if s.LastGrant == nil {
		return "; none since the start"
	}
	return fmt.Sprintf("; the last at %s: %s to %s for %s", cli.Clock(s.LastGrant.Since, s.Now), s.LastGrant.Service,
		s.LastGrant.Client, s.LastGrant.Whom())
}

// capturedLines prints the packets received, and the reasons for which packets were ignored.
func capturedLines(line func(what, format string, args ...any), c control.Capture) {
	line("packets", "received %d, possible knocks %d, dropped by the kernel %d", c.Received, c.Passed, c.KernelDrops)
	if c.Framed > 0 {
		line("", "%d of the possible knocks from browsers", c.Framed)
	}
	if g := c.Gate; g.Length+g.Cut+g.Tag+g.Spent+g.Elsewhere > 0 {
		line("", "%d stopped by the gate: wrong tag %d, wrong length %d, cut %d, copies %d; %d of them on an interface",
			g.Length+g.Cut+g.Tag+g.Spent+g.Elsewhere, g.Tag, g.Length, g.Cut, g.Spent+g.Elsewhere, g.XDP)
	}
	for _, part := range []struct {
		n    uint64
		what string
	}{
		{c.WrongInterface, "on another interface"}, {c.NotForUs, "to another host"},
		{c.OwnSource, "from an address of this host"},
		{c.BadSource, "from an impossible address"}, {c.Fragment, "in fragments"}, {c.Options, "with IP options"},
		{c.Extension, "with IPv6 extension headers"}, {c.Malformed, "malformed"},
		{c.Unframed, "too long, and not a browser's knock"},
	} {
		if part.n > 0 {
			line("", "%d ignored: %s", part.n, part.what)
		}
	}
}

// seenLines prints the clients that need attention, and the latest others.
func seenLines(line func(what, format string, args ...any), s *control.Status) {
	const others = 20
	what, plain, left := "heard", 0, s.MoreSeen
	for _, c := range s.Seen {
		if fine(c) {
			plain++
		}
		if fine(c) && plain > others {
			left++
			continue
		}
		line(what, "%s", seenText(c, s.Now))
		what = ""
	}
	if left > 0 {
		line("", "and %d more", left)
	}
}

// fine reports whether a client needs no attention. A clock kept by NTP is right to well below a second.
func fine(c control.Seen) bool {
	return c.Stale == nil && !c.OldKey && !c.OldGate && -1 < c.Ahead && c.Ahead < 1
}

func seenText(c control.Seen, now time.Time) string {
	parts := []string{}
	if !c.Last.IsZero() {
		parts = append(parts, fmt.Sprintf("clock %s, at %s from %s", offset(c.Ahead), cli.Clock(c.Last, now), c.From))
	}
	if c.OldKey {
		parts = append(parts, "uses its old key")
	}
	if c.OldGate {
		parts = append(parts, "uses the old gate key")
	}
	if st := c.Stale; st != nil {
		parts = append(parts, fmt.Sprintf("%s: %d refused as stale, the last at %s from %s", offset(st.Ahead), st.Packets,
			cli.Clock(st.Last, now), st.From))
	}
	return c.Client + ": " + strings.Join(parts, "; ")
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// prefixed returns before and text, or "" if text is empty.
func prefixed(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}
