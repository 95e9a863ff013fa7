package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
)

// knock is what the commands that knock have in common.
type knock struct {
	app     *app
	host    string
	source  sourceFlag
	timeout time.Duration
	wait    bool
	renew   bool
	quiet   bool // prints no success: something else uses standard output
	patient bool // waits for a gateway that has just started, beyond the usual timeout
	dryRun  bool
	json    bool
	letIn   networkFlag
	plan    *client.Plan
	shown   *waiting
}

// reach adds the flags of all commands that knock.
func (k *knock) reach(cmd *cobra.Command) {
	k.app.hostFlag(cmd, &k.host)
	k.source.register(cmd)
	cmd.Flags().DurationVar(&k.timeout, "timeout", client.DefaultTimeout, "how long to wait for an answer")
}

func (k *knock) flags(cmd *cobra.Command) {
	k.reach(cmd)
	cmd.Flags().BoolVar(&k.dryRun, "dry-run", false, "show what would be sent, but send nothing")
	cli.JSONFlag(cmd, &k.json)
}

// sourceFlag is a client.Source given as a flag.
type sourceFlag struct{ client.Source }

// register adds --source to a command.
func (s *sourceFlag) register(cmd *cobra.Command) {
	cmd.Flags().Var(s, "source", "`ADDRESS` to state: auto, observed, stun:HOST or an IP address (default: the host's "+
		"own setting)")
}

// Set parses a source.
func (s *sourceFlag) Set(text string) (err error) {
	s.Source, err = client.ParseSource(text)
	return err
}

// Type returns the value's name in the help text.
func (s *sourceFlag) Type() string { return "ADDRESS" }

// networkFlag is a network or an address given as a flag.
type networkFlag struct{ netip.Prefix }

// String is empty without a network.
func (n *networkFlag) String() string {
	if !n.IsValid() {
		return ""
	}
	return service.NetworkText(n.Prefix)
}

// Set parses a network.
func (n *networkFlag) Set(text string) (err error) {
	n.Prefix, err = service.ParseNetwork(text)
	return err
}

// Type returns the value's name in the help text.
func (n *networkFlag) Type() string { return "ADDRESS[/LENGTH]" }

// serviceArgs checks that there are arguments and that each can be a service.
func serviceArgs(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("no service given")
	}
	_, err := parseServices(args)
	return err
}

func parseServices(args []string) ([]service.Service, error) {
	services := make([]service.Service, 0, len(args))
	for _, arg := range args {
		s, err := service.ParseService(arg)
		if err != nil {
			return nil, fmt.Errorf("%q is not a service: %w", arg, err)
		}
		services = append(services, s)
	}
	return services, nil
}

// completeServices offers the services of the chosen host.
func (k *knock) completeServices(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	p, err := k.app.outline(k.host)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := slices.DeleteFunc(serviceNames(p), func(s string) bool { return slices.Contains(args, s) })
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeService offers one service of the chosen host.
func (k *knock) completeService(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return k.completeServices(cmd, args, part)
}

// run plans the command, knocks, and reports the outcome.
func (k *knock) run(cmd *cobra.Command, t spa.Type, args []string, d time.Duration) error {
	if k.renew && !k.dryRun {
		return k.keep(cmd, args, d)
	}
	if err := k.prepare(cmd, t, args, d); err != nil {
		return err
	}
	if k.dryRun {
		return k.describe(cmd)
	}
	err := k.send(cmd)
	if errors.Is(err, errSpent) {
		return k.again(cmd)
	}
	return err
}

// prepare plans the command.
func (k *knock) prepare(cmd *cobra.Command, t spa.Type, args []string, d time.Duration) error {
	profile, command, err := k.command(cmd, t, args, d)
	if err != nil {
		return err
	}
	done := cli.Progress(cmd, "finding the way to "+profile.Name) // a resolver or STUN server may be slow
	k.plan, err = client.Prepare(cmd.Context(), profile, command)
	done()
	return unprepared(err)
}

// command returns the command that the flags and arguments describe, and its host's profile.
func (k *knock) command(cmd *cobra.Command, t spa.Type, args []string,
	d time.Duration) (*keys.Profile, client.Command, error) {
	var none client.Command
	if k.timeout <= 0 {
		return nil, none, cli.Misuse(errors.New("--timeout must be more than 0"), "the default is 10s")
	}
	services, err := parseServices(args)
	if err != nil {
		return nil, none, err
	}
	profile, err := k.app.profileFor(cmd.Context(), k.host, services)
	if err != nil {
		return nil, none, err
	}
	c := client.Command{Type: t, Services: services, For: d, Source: k.source.Source, Timeout: k.timeout,
		LetIn: k.letIn.Prefix}
	k.heed(cmd, profile.Name, &c)
	k.beside(profile, &c)
	return profile, c, nil
}

// unprepared turns an error of planning a command into its exit; nil stays nil.
func unprepared(err error) error {
	if _, ok := errors.AsType[*client.NAT64Error](err); ok {
		return cli.Misuse(err, "state no address: --source observed (the gateway refuses that if it "+
			"requires a stated source)")
	}
	var impossible *client.CommandError
	if errors.As(err, &impossible) {
		return cli.Misuse(err, "")
	}
	return err
}

// send knocks and reports the answers as they arrive.
func (k *knock) send(cmd *cobra.Command) error {
	var answers []client.Answer
	done := k.shown.show("knocking on " + k.plan.Profile.Name)
	defer func() { done() }()
	for answer := range k.plan.Knock(cmd.Context()) {
		done()
		answers = append(answers, answer)
		if k.plan.Spent(answer) {
			k.learn(answers)
			return errSpent
		}
		if err := k.report(cmd, answer); err != nil {
			return err
		}
	}
	done()
	if err := cmd.Context().Err(); err != nil {
		return err
	}
	if k.patient && k.plan.Reachable(cmd.Context(), answers) {
		k.noteLost(cmd)
		return nil
	}
	if err := k.conclude(cmd, answers); err != nil {
		return err
	}
	if k.plan.Profile.Recovery && k.plan.Command.Type == spa.TypeOpen {
		cli.Note(cmd, "that was one of the few uses of the recovery key of %s", k.plan.Profile.Client)
	}
	if !k.wait {
		return nil
	}
	k.learn(answers)
	done = cli.Progress(cmd, "waiting for "+k.plan.Profile.Name+" to accept connections")
	return k.waitOpen(cmd, answers)
}

// conclude turns the answers of all families into the command's exit: success if one of them succeeded, else a refusal,
// else no answer. It warns about the other failures.
func (k *knock) conclude(cmd *cobra.Command, answers []client.Answer) error {
	var failures []*cli.Exit
	for _, answer := range answers {
		if failure := k.failure(answer); failure != nil {
			failures = append(failures, failure)
		}
	}
	if len(failures) == len(answers) {
		main := slices.IndexFunc(failures, func(e *cli.Exit) bool { return e.Code == cli.Refused })
		end := failures[max(main, 0)]
		warn(cmd, failures, end)
		return end
	}
	warn(cmd, failures, nil)
	return nil
}

// warn prints the failures that are not the command's exit and say something else.
func warn(cmd *cobra.Command, failures []*cli.Exit, end *cli.Exit) {
	for _, failure := range failures {
		if end == nil || failure.Error() != end.Error() {
			cli.Warn(cmd, "%v", failure)
		}
	}
}
