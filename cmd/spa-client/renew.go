package main

import (
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa"
	"sallyport/spa/client"
)

// keep opens services and keeps them open. If the first knock fails, it ends as open does without --renew.
func (k *knock) keep(cmd *cobra.Command, args []string, d time.Duration) error {
	profile, command, err := k.command(cmd, spa.TypeOpen, args, d)
	if err != nil {
		return err
	}
	done := k.shown.show("knocking on " + profile.Name)
	defer func() { done() }()
	for round := range client.Keep(cmd.Context(), profile, command) {
		done()
		k.plan = round.Plan
		if err := k.round(cmd, round); err != nil {
			return err
		}
	}
	return cmd.Context().Err()
}

// round reports the outcome of one round of knocks. It returns an error if that is the end.
func (k *knock) round(cmd *cobra.Command, r client.Round) error {
	if r.Cause == client.Moved {
		cli.Note(cmd, "this machine's address has changed")
	}
	for _, a := range r.Answers {
		if err := k.report(cmd, a); err != nil {
			return err
		}
	}
	err := unprepared(r.Err)
	if len(r.Answers) > 0 {
		err = k.conclude(cmd, r.Answers)
	}
	switch {
	case err == nil && r.Cause == client.First && k.wait:
		return k.waitOpen(cmd, r.Answers)
	case err == nil, r.Next == 0, r.Cause == client.First:
		return err
	}
	cli.Warn(cmd, "%v: trying again in %s", err, rounded(r.Next))
	return nil
}
