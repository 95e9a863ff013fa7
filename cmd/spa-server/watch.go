package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/service"
	"sallyport/spa/server/control"
	"sallyport/spa/server/live"
)

func newWatch(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show who is in and what is decided, as it happens",
		Long: `On a terminal: a picture of the running spa-server, refreshed each second. It shows whether
the guard is in place, the open grants and how long they last, the decisions, how many
packets a second are granted, refused or noise, and the clients with their clocks. Arrow
keys scroll, tab goes to the next list, q quits.

Otherwise, as in a pipe: the decisions until it is interrupted, one per line: each answered
request, each grant that ends, and packets that were made with a client's key but refused
without an answer, at most once a second for each client and reason. Noise is summed up
now and then. Decisions that arrive faster than they are read are counted and reported.`,
		Example: `  spa-server watch
  spa-server watch | grep alice
  spa-server watch --json | jq 'select(.client == "alice")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !asJSON && cli.Interactive(cmd) {
				return picture(cmd, *dir)
			}
			return ask(cmd, *dir, control.Request{Command: control.CommandWatch}, func(r control.Reply) error {
				return printDecision(cmd, r, asJSON)
			})
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

// picture draws the live view, if there is a server to show.
func picture(cmd *cobra.Command, dir string) error {
	client, err := dial(dir)
	if err != nil {
		return askError(err)
	}
	client.Close()
	return live.Run(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout(), live.Server{
		Ask: func(ctx context.Context, r control.Request, each func(control.Reply) error) error {
			client, err := dial(dir)
			if err != nil {
				return err
			}
			defer client.Close()
			return client.Ask(ctx, r, each)
		},
		Line: decisionLine,
	}, cli.Colours(cmd.OutOrStdout()))
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
		if d.LetIn.IsValid() {
			words = append(words, "for "+service.NetworkText(d.LetIn))
		}
	case d.Source.IsValid():
		words = append(words, "for "+d.Whom())
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
