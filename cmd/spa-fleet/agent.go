package main

import (
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa/fleet/agent"
)

func newAgent() *cobra.Command {
	dir := "/etc/spa-fleet"
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Fetch a gateway's bundles, in the foreground",
		Long: `Runs on a gateway. It fetches each new bundle of the gateway from a directory, a web server
or etcd, and puts it where spa-server looks. --config names the directory of agent.toml, its
configuration: examples/fleet describes it. The agent has no key of the fleet, and refuses to
run as root. On Linux with Landlock, it can open only the files that it needs. spa-server
checks every bundle.

While the source is unreachable, the gateway keeps its bundle.`,
		Example: `  spa-fleet agent
  spa-fleet agent --config /etc/spa-fleet`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := agent.Load(dir)
			if err != nil {
				return err
			}
			source, closing, err := c.Open()
			if err != nil {
				return err
			}
			if err := agent.Confine(c, dir); err != nil {
				return cli.Fail(err, "systemctl start spa-fleet-agent; by hand: setpriv --reuid spa-fleet "+
					"--regid spa-fleet --clear-groups spa-fleet agent")
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			log.Info("following", "gateway", c.Gateway, "from", c.From, "to", c.To)
			(&agent.Agent{Source: source, Gateway: c.Gateway, To: c.To, Log: log}).Run(ctx)
			if err := closing(); err != nil {
				return fmt.Errorf("closing %s: %w", c.From, err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "config", dir, "`directory` of agent.toml")
	return cmd
}
