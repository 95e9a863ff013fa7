package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
)

func (a *app) openCommand() *cobra.Command {
	k := &knock{app: a}
	var duration durationFlag
	cmd := &cobra.Command{
		Use:   "open SERVICE...",
		Short: "Open services for this machine's address",
		Long: `Open asks the gateway to open services for this machine's address and says until
when they are. A service is a name, or a port ("tcp/8443") where the gateway allows
it. Several are granted all or none. A host with IPv4 and IPv6 addresses is
knocked on in both families: a line each, and one of them granted is success.

--source says which address the request states as this machine's: "auto" states the
own address where it is globally routable, and otherwise leaves it to what the gateway
sees; "observed" always leaves it; an address states that one; "stun:HOST" asks that STUN
server, and nobody else is ever asked. What is stated has to be what the gateway
sees, or it stays silent.

A gateway that has just started takes no knocks for its window (30s): where --timeout
allows it, open goes on until it does.

--renew stays and keeps the services open: it knocks again before their time is over and
when this machine's own address changes, and tries again, ever more seldom, where there is no
answer. Where not even the first knock succeeds it ends, as without --renew. Ctrl-C ends it; the
services then close by themselves when their time is over, and spa-client close does it at once.`,
		Example: `  spa-client open ssh --host gw
  spa-client open ssh web --host gw --for 10m --wait
  spa-client open vpn --host gw --for 1h --renew
  spa-client open tcp/8443 --host gw --dry-run`,
		Args: serviceArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.run(cmd, spa.TypeOpen, args, duration.value())
		},
		ValidArgsFunction: k.completeServices,
	}
	k.flags(cmd)
	cmd.Flags().Var(&duration, "for", "how long, such as 30s or 1h30m; the service's own without it")
	cmd.Flags().BoolVar(&k.wait, "wait", false, "return only when the port accepts TCP connections")
	cmd.Flags().BoolVar(&k.renew, "renew", false, "stay and keep them open until interrupted")
	return cmd
}

// durationFlag is a duration as the configuration files have it too.
type durationFlag time.Duration

func (d *durationFlag) value() time.Duration { return time.Duration(*d) }

// String is empty without a duration.
func (d *durationFlag) String() string {
	if *d == 0 {
		return ""
	}
	return service.FormatDuration(time.Duration(*d))
}

// Set reads a duration.
func (d *durationFlag) Set(s string) error {
	parsed, err := service.ParseDuration(s)
	*d = durationFlag(parsed)
	return err
}

// Type is what the help calls the value.
func (d *durationFlag) Type() string { return "DURATION" }

// waitOpen returns when one of the opened gateways' ports accepts. All are tried at once:
// where one family's connections do not get through, the other's do not wait for them.
func (k *knock) waitOpen(cmd *cobra.Command, answers []client.Answer) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), k.plan.Command.Timeout)
	defer cancel()
	opened := slices.DeleteFunc(slices.Clone(answers), func(a client.Answer) bool { return a.Verdict != client.Opened })
	results := make(chan error, len(opened))
	for _, answer := range opened {
		go func() { results <- k.plan.WaitOpen(ctx, answer) }()
	}
	for range opened {
		err := <-results
		if err == nil {
			return nil
		}
		if errors.Is(err, client.ErrNoTCP) {
			cli.Warn(cmd, "there is no TCP port to wait for")
			return nil
		}
	}
	if err := cmd.Context().Err(); err != nil || len(opened) == 0 {
		return err
	}
	err := fmt.Errorf("the port is open on %s but accepts no connections", k.plan.Profile.Name)
	if len(k.plan.Command.Services) > 1 {
		err = fmt.Errorf("%s are open on %s, but not each accepts connections", k.services(), k.plan.Profile.Name)
	}
	return k.unreached(opened[len(opened)-1], err)
}
