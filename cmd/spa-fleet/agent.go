package main

import (
	"context"
	"log/slog"
	"os/signal"
	"sync"
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

With share in agent.toml, it also carries messages between spa-server and etcd, for gateways
that share an address. With taken, it carries the gateway's report of which bundle it has
taken over to etcd, for spa-fleet status.

While the source is unreachable, the gateway keeps its bundle.`,
		Example: `  spa-fleet agent
  spa-fleet agent --config /etc/spa-fleet`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := agent.Load(dir)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			tasks, closing, err := agentTasks(c, log)
			defer closing()
			if err != nil {
				return err
			}
			if err := agent.Confine(c, dir); err != nil {
				return cli.Fail(err, "systemctl start spa-fleet-agent; by hand: setpriv --reuid spa-fleet "+
					"--regid spa-fleet --clear-groups spa-fleet agent")
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			log.Info("following", "gateway", c.Gateway, "from", c.From, "to", c.To, "share", c.Share, "taken", c.Taken)
			var running sync.WaitGroup
			for _, task := range tasks {
				running.Go(func() { task(ctx) })
			}
			running.Wait()
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "config", dir, "`directory` of agent.toml")
	return cmd
}

// agentTasks returns what an agent with this configuration does at once. Closing ends its connections, after an error
// too.
func agentTasks(c *agent.Config, log *slog.Logger) (tasks []func(context.Context), closing func(), err error) {
	var opened []func() error
	closing = func() {
		for _, end := range opened {
			_ = end() // the program ends
		}
	}
	if c.To != "" {
		source, end, err := c.Open()
		if err != nil {
			return nil, closing, err
		}
		opened = append(opened, end)
		tasks = append(tasks, (&agent.Agent{Source: source, Gateway: c.Gateway, To: c.To, Log: log}).Run)
	}
	if c.Share != "" {
		bridge, end, err := c.OpenBridge(log)
		if err != nil {
			return nil, closing, err
		}
		opened = append(opened, end)
		tasks = append(tasks, bridge.Run)
	}
	if c.Taken != "" {
		reporter, end, err := c.OpenReporter(log)
		if err != nil {
			return nil, closing, err
		}
		opened = append(opened, end)
		tasks = append(tasks, reporter.Run)
	}
	return tasks, closing, nil
}
