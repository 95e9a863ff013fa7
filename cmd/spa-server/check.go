package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/quote"
	"sallyport/spa/check"
)

func newCheck(dir *string) *cobra.Command {
	var asJSON bool
	var from string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what is wrong with the configuration and what to do about it",
		Long: `Parses every file, looks at the host as it is, and changes nothing. A problem keeps the
gateway or a client from working, or leaves a port open. A warning names what weakens the
gateway or has no effect yet. A notice names what may not be meant. Below each stand the
commands that help, one on a line; words in place of a command begin with #.

It leads a made-up first packet of a stranger to every guarded port through all tables of
nftables and iptables, and names the rule that would drop it. It does the same with all
other ports, and names those that lead to a guarded service. It looks for an sshd that
nothing guards, for other ports of a guarded program, what shows or uses the knock ports,
the clock, how full connection tracking is, what empties rule sets with nothing to put the
guard back, and who may read and write the gateway's files.

With --from it follows one client's way: a packet from its address, by the interface by which it
comes in. What another tool has against that address, such as a ban of fail2ban, is named with
the command that lifts it.

Some of that only root may see: what was not looked at is said.

It ends with 1 if there is a problem, and with 0 otherwise.`,
		Example: `  spa-server check
  spa-server check --from 203.0.113.7
  spa-server check --json | jq 'select(.severity == "problem")'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var client netip.Addr
			if from != "" {
				var err error
				if client, err = netip.ParseAddr(from); err != nil {
					return cli.Misuse(fmt.Errorf("--from %q is not an IP address", from), "spa-server check --from 203.0.113.7")
				}
			}
			found := check.Run(cmd.Context(), *dir, cli.Version(), client, time.Now())
			problems := 0
			for _, f := range found {
				if f.Severity == check.Problem {
					problems++
				}
				if err := printFinding(cmd, f, asJSON); err != nil {
					return err
				}
			}
			if problems > 0 {
				return &cli.Exit{Code: cli.Failed, Err: fmt.Errorf("problems found: %d", problems)}
			}
			if !asJSON && len(found) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "no problems found")
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "also follow the way of the client with this `address`")
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

func printFinding(cmd *cobra.Command, f check.Finding, asJSON bool) error {
	if asJSON {
		return cli.JSON(cmd, f)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s: %s\n", f.Severity, quote.Printable(f.Subject), indented(f.Text))
	if f.Advice != "" {
		_, adviceErr := fmt.Fprintf(cmd.OutOrStdout(), "    %s\n", indented(f.Advice))
		err = errors.Join(err, adviceErr)
	}
	return err
}

// indented is a text whose further lines are no findings of their own.
func indented(text string) string {
	return strings.ReplaceAll(quote.Lines(text), "\n", "\n    ")
}
