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
		Long: `Open asks the gateway to open services for this machine's address and prints when
they close again. A service is a name, or a port ("tcp/8443") if the gateway allows it.
Several services are granted all or none. If the host has IPv4 and IPv6 addresses, open
knocks in both families: a line each, and one grant is success.

--source sets the address that the request states as this machine's: "auto" states the
machine's own address if it is globally routable, and otherwise none; "observed" states
none: the gateway uses the address that it sees; an IP address states that one;
"stun:HOST" asks that STUN server. If the stated address is not the one that the gateway
sees, the gateway stays silent.

--let-in opens the services for another address or a whole network instead, if the client's
file at the gateway allows it (widest4, widest6, delegate): a network around this machine's
address, for an address that changes, or another machine's address. Everybody in it gets in.

A gateway that has just started accepts no knocks for its window (30s by default): open
keeps trying until it does, if --timeout allows.

--renew keeps the services open: it knocks again before their time is over and when this
machine's address changes, and retries ever more rarely if there is no answer. If the first
knock fails, it exits as without --renew. Ctrl-C ends it; the services then close when their
time is over, or at once with spa-client close.`,
		Example: `  spa-client open ssh --host gw
  spa-client open ssh web --host gw --for 10m --wait
  spa-client open vpn --host gw --for 1h --renew
  spa-client open ssh --host gw --let-in 198.51.100.0/24
  spa-client open tcp/8443 --host gw --dry-run`,
		Args: serviceArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.run(cmd, spa.TypeOpen, args, duration.value())
		},
		ValidArgsFunction: k.completeServices,
	}
	k.flags(cmd)
	cmd.Flags().Var(&duration, "for", "how long, such as 30s or 1h30m (default: the service's own)")
	cmd.Flags().Var(&k.letIn, "let-in", "`ADDRESS[/LENGTH]` to open for, in place of this machine's address")
	cmd.Flags().BoolVar(&k.wait, "wait", false,
		"return only when the port accepts TCP connections, unless it admits only one")
	cmd.Flags().BoolVar(&k.renew, "renew", false, "stay and keep them open until interrupted")
	return cmd
}

// durationFlag is a duration in the syntax of the configuration files.
type durationFlag time.Duration

func (d *durationFlag) value() time.Duration { return time.Duration(*d) }

// String is empty without a duration.
func (d *durationFlag) String() string {
	if *d == 0 {
		return ""
	}
	return service.FormatDuration(time.Duration(*d))
}

// Set parses a duration.
func (d *durationFlag) Set(s string) error {
	parsed, err := service.ParseDuration(s)
	*d = durationFlag(parsed)
	return err
}

// Type returns the value's name in the help text.
func (d *durationFlag) Type() string { return "DURATION" }

// waitOpen returns when a port of one of the opened gateways accepts a connection. It tries all at once: a family whose
// connections do not get through does not delay the other.
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
		if errors.Is(err, client.ErrOnce) {
			k.noteUntested(cmd, opened[0])
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
		err = fmt.Errorf("%s are open on %s, but not all accept connections", k.services(), k.plan.Profile.Name)
	}
	return k.unreached(opened[len(opened)-1], err)
}

// noteUntested names the services of an answer that admit one connection only: the user's.
func (k *knock) noteUntested(cmd *cobra.Command, a client.Answer) {
	for i, s := range k.plan.Command.Services {
		if granted(a, i).Once {
			cli.Note(cmd, "%s is not tested: only the first connection gets in", s)
		}
	}
}
