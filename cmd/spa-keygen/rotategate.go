package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

func newRotateGate(dir *string) *cobra.Command {
	overlap := enrol.Overlap(keys.GateOverlap)
	var force bool
	cmd := &cobra.Command{
		Use:   "rotate-gate",
		Short: "Replace the gate key that all clients share",
		Long: `Makes a new gate key. The previous one stays valid for a while, because every client
has it and gets the new one only with a new token. All tokens made from now on hold the
new gate key.

The gate key hides who knocks and filters noise; it opens nothing on its own. Replace it
when someone who had a token has left or lost it. Then:

  1. "spa-server reload" loads it into a running server. Until then new tokens
     do not work.
  2. "spa-keygen rotate NAME" makes each client's new token.
  3. "spa-server status" shows which clients still use the previous gate key.

At most two gate keys can be valid. While the previous one is, rotate-gate refuses to make
a third: --force ends the previous one, and shuts out the clients that have no newer token.`,
		Example: `  spa-keygen rotate-gate
  spa-keygen rotate-gate --overlap 90d`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return rotateGate(cmd, *dir, overlap, force)
		},
	}
	cmd.Flags().Var(&overlap, "overlap", "how long the previous gate key stays valid, such as 24h "+
		"or 30d; 0 ends it at once")
	cmd.Flags().BoolVar(&force, "force", false, "end a previous gate key that is still valid")
	return cmd
}

func rotateGate(cmd *cobra.Command, dir string, overlap enrol.Overlap, force bool) error {
	now := time.Now()
	gates, err := keys.ChangeGates(filepath.Join(dir, config.GateFile), func(g *keys.Gates) error {
		if now.Before(g.Until) && !force {
			return cli.Fail(fmt.Errorf("there already is a new gate key: the previous gate key is valid until %s, and at most "+
				"two gate keys can be", moment(&g.Until)),
				"rotate again after that; --force ends the previous one now, and shuts out the clients that have no newer token")
		}
		g.Rotate(overlap.End(now))
		return nil
	})
	if err != nil {
		return err
	}
	record(cmd, dir, control.Act{Previous: gates.Until})
	if now.Before(gates.Until) {
		fmt.Fprintf(cmd.OutOrStdout(), "there is a new gate key; the previous one is valid until %s\n", moment(&gates.Until))
	} else {
		fmt.Fprintln(cmd.OutOrStdout(), "there is a new gate key; the previous one is no longer valid")
	}
	tellNext(cmd, dir, now)
	return nil
}

// tellNext prints what is left to do. The client files do not record which gate key a client has.
func tellNext(cmd *cobra.Command, dir string, now time.Time) {
	cli.Note(cmd, "load it into a running server: spa-server reload (until then, new tokens do not work)")
	registry, _ := keys.LoadRegistry(filepath.Join(dir, config.ClientsDir))
	var names []string
	for _, c := range registry.Clients() {
		if enrol.State(c, now) == "active" {
			names = append(names, c.Name)
		}
	}
	const most = 10
	switch {
	case len(names) > most:
		cli.Note(cmd, "then each of %d clients needs a new token (spa-keygen rotate NAME); spa-keygen list names them, "+
			"spa-server status shows which still use the previous gate key", len(names))
	case len(names) > 0:
		cli.Note(cmd, "then each client needs a new token (spa-keygen rotate NAME): %s; spa-server status shows which "+
			"still use the previous gate key", strings.Join(names, ", "))
	}
}
