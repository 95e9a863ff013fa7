package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/beevik/ntp"
	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/quote"
	"sallyport/keys/service"
	"sallyport/spa/client/doctor"
)

// diagnosis is one run of doctor.
type diagnosis struct {
	app     *app
	host    string
	source  sourceFlag
	timeout time.Duration
	ntp     string
	json    bool

	profile *keys.Profile
	bad     int
	refused bool
	silent  bool
}

func (a *app) doctorCommand() *cobra.Command {
	d := &diagnosis{app: a}
	cmd := &cobra.Command{
		Use:   "doctor [SERVICE...]",
		Short: "Find out why a gateway does not open a port",
		Long: `Doctor checks each step between this machine and an open port: the profile, the
gateway's name, this machine's addresses, the clock, the ports before the knock, each
knock port, the gateway's receipt, and the ports after the knock.

Certain faults are marked "bad". A gateway deliberately stays silent about packets that it
does not accept: the likely causes are then ranked as "suspect", each with the sign that
the gateway's administrator sees in "spa-server watch".

It knocks as open does, for the named services or for all services of the profile: grants
stay open until they end. It contacts no other host, except a time server given with --ntp.

Exit status: 0 no problems found, 1 problems found, 3 refused by the gateway, 4 no answer.`,
		Example: `  spa-client doctor --host gw
  spa-client doctor ssh --host gw --ntp pool.ntp.org`,
		Args: func(_ *cobra.Command, args []string) error {
			_, err := parseServices(args)
			return err
		},
		RunE:              d.run,
		ValidArgsFunction: (&knock{app: a}).completeServices,
	}
	a.hostFlag(cmd, &d.host)
	d.source.register(cmd)
	cmd.Flags().DurationVar(&d.timeout, "timeout", 5*time.Second, "how long each check waits for an answer")
	cmd.Flags().StringVar(&d.ntp, "ntp", "", "time server to compare this machine's clock with: `HOST`")
	cli.JSONFlag(cmd, &d.json)
	return cmd
}

func (d *diagnosis) run(cmd *cobra.Command, args []string) error {
	if d.timeout <= 0 {
		return cli.Misuse(errors.New("--timeout must be more than 0"), "the default is 5s")
	}
	services, err := parseServices(args)
	if err != nil {
		return err
	}
	if d.profile, err = d.app.profileFor(cmd.Context(), d.host, services); err != nil {
		return err // names the file and what to do
	}
	if err := spare(d.profile, "doctor"); err != nil {
		return err
	}
	first := doctor.Finding{Step: "profile", State: doctor.Good,
		Text: fmt.Sprintf("%s is readable only by you: client %s, %s", d.profile.Name, d.profile.Client,
			atGateway(d.profile))}
	if err := d.tell(cmd, first); err != nil {
		return err
	}
	return d.examine(cmd, services)
}

func (d *diagnosis) examine(cmd *cobra.Command, services []service.Service) error {
	o := doctor.Options{Services: services, Source: d.source.Source, Timeout: d.timeout}
	if d.ntp != "" {
		o.Clock = d.askTime
	}
	looking := "examining the way to " + d.profile.Name
	done := cli.Progress(cmd, looking)
	defer func() { done() }()
	for finding := range doctor.Examine(cmd.Context(), d.profile, o) {
		done()
		if finding.Status != 0 {
			d.refused, finding.Advice = true, d.app.advice(d.profile, services, finding.Status)
		}
		d.silent = d.silent || finding.Step == doctor.StepSilence
		if finding.State == doctor.Bad {
			d.bad++
		}
		if err := d.tell(cmd, finding); err != nil {
			return err
		}
		done = cli.Progress(cmd, looking)
	}
	done()
	if err := cmd.Context().Err(); err != nil {
		return err
	}
	return d.conclude()
}

// askTime asks a time server how far this machine's clock is behind (RFC 5905, client mode).
func (d *diagnosis) askTime(ctx context.Context) (time.Duration, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(d.timeout)
	}
	response, err := ntp.QueryWithOptions(d.ntp, ntp.QueryOptions{Timeout: time.Until(deadline)})
	if err == nil {
		err = response.Validate()
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", d.ntp, err)
	}
	return response.ClockOffset, nil
}

// tell prints a finding, and below it what to do and what the administrator sees.
func (d *diagnosis) tell(cmd *cobra.Command, f doctor.Finding) error {
	if d.json {
		return cli.JSON(cmd, f)
	}
	w := cmd.OutOrStdout()
	_, err := fmt.Fprintf(w, "%-8s %s\n", f.State, quote.Printable(f.Text))
	if err == nil && f.Advice != "" {
		_, err = fmt.Fprintf(w, "%-8s - %s\n", "", quote.Printable(f.Advice))
	}
	if err == nil && f.Sign != "" {
		_, err = fmt.Fprintf(w, "%-8s - sign: %s\n", "", quote.Printable(f.Sign))
	}
	if err != nil {
		return fmt.Errorf("printing the findings: %w", err)
	}
	return nil
}

// conclude returns the command's exit. The findings have been printed.
func (d *diagnosis) conclude() error {
	switch name := d.profile.Name; {
	case d.refused:
		return &cli.Exit{Code: cli.Refused, Err: fmt.Errorf("%s refused: the reason is above", name)}
	case d.silent:
		return &cli.Exit{Code: cli.NoAnswer, Err: fmt.Errorf("no answer from %s", name)}
	case d.bad > 0:
		return &cli.Exit{Code: cli.Failed, Err: errors.New("problems found: see the lines marked bad")}
	}
	return nil
}
