package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/spa/config"
)

func newRotateGate(dir *string) *cobra.Command {
	overlap := overlapFlag(30 * day)
	var force bool
	cmd := &cobra.Command{
		Use:   "rotate-gate",
		Short: "Replace the gate key that all clients share",
		Long: `Makes a new gate key. The one of before stays good beside it for a while, because
every client has it and needs a new token to have the new one. All tokens that are
made from now on hold the new gate key.

The gate key hides who knocks and filters noise; it opens nothing by itself. Replace
it when somebody who had a token has left or lost it. Then:

  1. "spa-server reload" makes a running server take it. Before that the tokens
     made from now on are of no use.
  2. "spa-keygen rotate NAME" makes each client's new token.
  3. "spa-server status" shows who still uses the gate key of before.

While the gate key of before is good it is not replaced again, because there are no
more than two: --force ends the older one, and shuts out who has no other.`,
		Example: `  spa-keygen rotate-gate
  spa-keygen rotate-gate --overlap 90d`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return rotateGate(cmd, *dir, overlap, force)
		},
	}
	cmd.Flags().Var(&overlap, "overlap", "how long the gate key of before stays good, such as 24h or 30d; 0 ends it at once")
	cmd.Flags().BoolVar(&force, "force", false, "end a gate key of before that is still good")
	return cmd
}

func rotateGate(cmd *cobra.Command, dir string, overlap overlapFlag, force bool) error {
	now := time.Now()
	gates, err := keys.ChangeGates(filepath.Join(dir, config.GateFile), func(g *keys.Gates) error {
		if now.Before(g.Until) && !force {
			return cli.Fail(fmt.Errorf("the gate key was replaced before, and the one of then is good until %s", moment(&g.Until)),
				"rotate again after that; --force ends it now, and shuts out the clients that have no token of after it")
		}
		g.Rotate(overlap.end(now))
		return nil
	})
	if err != nil {
		return err
	}
	if now.Before(gates.Until) {
		fmt.Fprintf(cmd.OutOrStdout(), "there is a new gate key; the one of before stays good until %s\n", moment(&gates.Until))
	} else {
		fmt.Fprintln(cmd.OutOrStdout(), "there is a new gate key; the one of before lets nobody in any more")
	}
	tellNext(cmd, dir, now)
	return nil
}

// tellNext says what is left to do. The clients' files do not tell which gate key a client has.
func tellNext(cmd *cobra.Command, dir string, now time.Time) {
	cli.Note(cmd, "spa-server reload makes a running server take it; tokens made from now on are of no use before that")
	registry, _ := keys.LoadRegistry(filepath.Join(dir, config.ClientsDir))
	var names []string
	for _, c := range registry.Clients() {
		if state(c, now) == "active" {
			names = append(names, c.Name)
		}
	}
	const most = 10
	switch {
	case len(names) > most:
		cli.Note(cmd, "then each of %d clients needs a new token (spa-keygen rotate NAME); spa-keygen list names them, spa-server status shows who still uses the gate key of before", len(names))
	case len(names) > 0:
		cli.Note(cmd, "then each client needs a new token (spa-keygen rotate NAME): %s; spa-server status shows who still uses the gate key of before", strings.Join(names, ", "))
	}
}
