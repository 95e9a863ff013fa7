package main

import (
	"errors"
	"fmt"
	"io/fs"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/spa/fleet/office"
)

func (a *app) statusCommand() *cobra.Command {
	var p target
	var asJSON bool
	maxAge := enrol.Overlap(7 * 24 * time.Hour)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the published bundles, which gateways have taken them over, and what is not published yet",
		Long: `Shows the serial and the time of each gateway's bundle, in --to or where the last publish
put it. A bundle is behind if a later publish did not reach that place, and stale if it is
older than --max-age.

TAKEN shows which bundle the gateway itself has taken over, and when, if its report gets
back: spa-fleet agent writes it into etcd; in a directory, it is the file NAME.taken beside
NAME.bundle. Gateways sign their reports. One that is withheld or old can only make a gateway
look as if it were behind.

Then it lists what has changed since the last publish. It needs no identity.
"spa-server status" shows what a gateway itself has.

It exits with 1 if a gateway has no current bundle there, or reports but does not prove that
it has taken over the last one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := a.load()
			if err != nil {
				return err
			}
			return a.status(cmd, o, p, time.Duration(maxAge), asJSON)
		},
	}
	p.flags(cmd, "with the bundles")
	cmd.Flags().Var(&maxAge, "max-age", "the greatest age of a bundle")
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

func (a *app) status(cmd *cobra.Command, o *office.Office, p target, maxAge time.Duration, asJSON bool) error {
	now := time.Now()
	changes := o.Changes()
	var states []office.State
	if p.to != "" || o.Published.To != "" {
		d, err := a.open(o, p)
		if err != nil {
			return err
		}
		defer d.close()
		states, err = o.States(cmd.Context(), d, now, maxAge)
		if errors.Is(err, fs.ErrNotExist) {
			return cli.Fail(err, "name the directory with the bundles: --to DIR")
		}
		if err != nil {
			return a.explain(err)
		}
	}
	bad, behind := 0, 0
	for _, s := range states {
		if s.State != office.Current && s.State != office.Retired {
			bad++
		}
		if s.Taken != nil && s.Taken.Behind {
			behind++
		}
	}
	if asJSON {
		err := cli.JSON(cmd, struct {
			Fleet    string         `json:"fleet"`
			Serial   int64          `json:"serial"`
			Gateways []office.State `json:"gateways"`
			Changes  []string       `json:"changes"`
		}{o.Name, o.Published.Serial, append([]office.State{}, states...), append([]string{}, changes...)})
		if err != nil {
			return err
		}
	} else if err := printStatus(cmd, o, states, changes); err != nil {
		return err
	}
	if bad > 0 {
		return cli.Fail(fmt.Errorf("%d of %d gateways have no current bundle there", bad, len(o.Active())),
			"spa-fleet publish")
	}
	if behind > 0 {
		return cli.Fail(fmt.Errorf("%d of %d gateways have not reported that they took over the last bundle", behind,
			len(o.Active())), "if their reports come in files, fetch them again; then see spa-server status there")
	}
	if len(changes) > 0 && !asJSON {
		a.publishNext(cmd, o)
	}
	return nil
}

func printStatus(cmd *cobra.Command, o *office.Office, states []office.State, changes []string) error {
	out := cmd.OutOrStdout()
	if o.Published.Serial == 0 {
		fmt.Fprintf(out, "fleet %s: nothing published yet\n", o.Name)
	} else {
		fmt.Fprintf(out, "fleet %s: serial %d, published %s by %s\n", o.Name, o.Published.Serial,
			moment(o.Published.Time), o.Published.By)
	}
	if len(states) > 0 {
		w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "GATEWAY\t"+siteColumn(o, "SITE")+"SERIAL\tISSUED\tSTATE\tTAKEN")
		for _, s := range states {
			serial, issued := "-", "-"
			if s.Issued != nil {
				serial, issued = fmt.Sprint(s.Serial), moment(*s.Issued)
			}
			text := s.State
			if s.Problem != "" {
				text += ": " + s.Problem
			}
			fmt.Fprintf(w, "%s\t%s%s\t%s\t%s\t%s\n", s.Gateway, siteColumn(o, s.Site), serial, issued, text, takenText(s))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(changes) == 0 {
		return nil
	}
	fmt.Fprintf(out, "not published yet:\n")
	for i, text := range changes {
		if i == mostChanges {
			fmt.Fprintf(out, "  … and %d more\n", len(changes)-i)
			break
		}
		fmt.Fprintf(out, "  %s\n", text)
	}
	return nil
}

// takenText says what a gateway has reported.
func takenText(s office.State) string {
	t := s.Taken
	switch {
	case t == nil && (s.State == office.Retired || s.State == office.Foreign):
		return "-"
	case t == nil:
		return "not reported"
	case t.Since == nil:
		return t.State
	}
	text := fmt.Sprintf("%d since %s", t.Serial, moment(*t.Since))
	switch {
	case t.State != office.Proved && t.State != office.Unproved:
		return t.State + ": says " + text
	case t.State == office.Unproved:
		text = "says " + text
	}
	if t.Behind {
		text += ", behind"
	}
	return text
}
