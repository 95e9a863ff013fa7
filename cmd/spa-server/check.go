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
		Short: "Report what is wrong with the configuration and how to fix it",
		Long: `Parses every file, inspects the host, and changes nothing. A problem keeps the gateway or
a client from working, or leaves a port open. A warning names what weakens the gateway or
has no effect yet. A notice names what may not be intended. Below each are the commands
that fix it, one per line; advice that is not a command begins with #.

It traces a stranger's first packet to every guarded port through all tables of nftables
and iptables, and names the rule that would drop it. It does the same for all other ports,
and names those that lead to a guarded service. It looks for an sshd that no service
guards, for other ports of a guarded program, for what reveals or uses the knock ports, at
the clock, at how full connection tracking is, for what flushes the rules with nothing to
restore the guard, and at who can read and write the gateway's files.

With --from it traces one client: a packet from its address, on the interface where it
arrives. If another tool blocks that address, such as a ban by fail2ban, it prints the
command that lifts the block.

Some of that needs root: check reports what it could not inspect.

It exits with 1 if there is a problem, and with 0 otherwise.`,
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
	cmd.Flags().StringVar(&from, "from", "", "also check the path of a client at this `address`")
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

// indented indents the further lines of a text, so that they do not look like findings of their own.
func indented(text string) string {
	return strings.ReplaceAll(quote.Lines(text), "\n", "\n    ")
}
