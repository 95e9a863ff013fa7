package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/server/control"
)

func newWatch(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show decisions as they are made, one per line",
		Long: `Shows the decisions of the running spa-server until it is interrupted: each answered
request, each grant that ends, and packets that were made with a client's key but refused
without an answer, at most once a second for each client and reason. Noise is summed up
now and then. Decisions that arrive faster than they are read are counted and reported.`,
		Example: `  spa-server watch
  spa-server watch --json | jq 'select(.client == "alice")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ask(cmd, *dir, control.Request{Command: control.CommandWatch}, func(r control.Reply) error {
				return printDecision(cmd, r, asJSON)
			})
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

func printDecision(cmd *cobra.Command, r control.Reply, asJSON bool) error {
	w := cmd.OutOrStdout()
	switch {
	case r.Missed > 0 && asJSON:
		return cli.JSON(cmd, map[string]uint64{"missed": r.Missed})
	case r.Missed > 0:
		_, err := fmt.Fprintf(w, "%d decisions were not shown\n", r.Missed)
		return err
	case r.Decision == nil:
		return nil
	case asJSON:
		return cli.JSON(cmd, r.Decision)
	}
	_, err := fmt.Fprintln(w, decisionLine(*r.Decision))
	return err
}

// decisionLine returns a decision as one line, for an administrator with a user on the phone.
func decisionLine(d control.Decision) string {
	words := []string{d.Time.Local().Format(time.TimeOnly), d.Verdict}
	if d.Client != "" {
		words = append(words, d.Client)
	}
	if d.Command == "close" && d.Verdict != "closed" {
		words = append(words, "close")
	}
	words = append(words, strings.Join(d.Services, ","))
	if d.Packets > 0 {
		words = append(words, fmt.Sprintf("%d × ", d.Packets))
	}
	switch {
	case d.From.IsValid():
		words = append(words, "from "+d.From.String())
	case d.Source.IsValid():
		words = append(words, "for "+d.Source.String())
	}
	if len(d.Until) > 0 {
		words = append(words, "until "+cli.Clock(d.Until[0], d.Time))
	}
	line := strings.Join(strings.Fields(strings.Join(words, " ")), " ")
	if why := because(d); why != "" {
		line += ": " + why
	}
	return line
}

// because returns the reason, and other useful details of the packet.
func because(d control.Decision) string {
	var parts []string
	if d.Reason != "" {
		parts = append(parts, d.Reason)
	}
	if d.Ahead != 0 {
		parts = append(parts, "clock "+offset(d.Ahead))
	}
	if d.Copied {
		parts = append(parts, "not from an address of its client: perhaps a copy")
	}
	if d.OldKey {
		parts = append(parts, "made with the client's old key")
	}
	if d.OldGate {
		parts = append(parts, "made with the old gate key")
	}
	return strings.Join(parts, ", ")
}
