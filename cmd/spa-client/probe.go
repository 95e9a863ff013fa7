package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/quote"
	"sallyport/keys/service"
	"sallyport/spa/client/doctor"
)

// probe is one run of the command.
type probe struct {
	app      *app
	host     string
	source   sourceFlag
	timeout  time.Duration
	json     bool
	textfile string
}

func (a *app) probeCommand() *cobra.Command {
	p := &probe{app: a}
	cmd := &cobra.Command{
		Use:   "probe SERVICE",
		Short: "Check from outside that a service is shut, opens and shuts again, for monitoring",
		Long: `Probe tries a guarded service as users and strangers meet it: without a grant its port must
not accept connections, after a knock it must, and after a close it must not any more. It
prints the outcome and the duration of each step, in each address family.

Give the monitoring host a client key of its own that may open just this service: probe
ends this client's other grants for it. It needs about 3 seconds if the port is dark. A
service without TCP ports is only knocked on and closed.

The first line and the exit status are those of a monitoring plug-in for Nagios, Icinga or
Zabbix. --textfile writes a file for the textfile collector of Prometheus' node_exporter.

Exit status: 0 works, 1 works with a warning, 2 users cannot get in or strangers can, 3 it
could not be tried.`,
		Example: `  spa-client probe ssh --host gw
  spa-client probe ssh --host gw --textfile /var/lib/prometheus/node-exporter/spa-gw.prom`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("one service at a time")
			}
			return serviceArgs(nil, args)
		},
		RunE:              p.run,
		ValidArgsFunction: (&knock{app: a}).completeService,
	}
	cli.OwnFailures(cmd, int(doctor.Unknown))
	a.hostFlag(cmd, &p.host)
	p.source.register(cmd)
	cmd.Flags().DurationVar(&p.timeout, "timeout", 5*time.Second, "how long each step waits for an answer")
	cmd.Flags().StringVar(&p.textfile, "textfile", "", "also write metrics to this `FILE`, whose name ends in .prom")
	cli.JSONFlag(cmd, &p.json)
	return cmd
}

func (p *probe) run(cmd *cobra.Command, args []string) error {
	if p.timeout <= 0 {
		return errors.New("--timeout must be more than 0: the default is 5s")
	}
	if p.textfile != "" && filepath.Ext(p.textfile) != ".prom" {
		return errors.New("--textfile: node_exporter reads only files whose names end in .prom")
	}
	services, err := parseServices(args)
	if err != nil {
		return err
	}
	result := probed{Host: p.host, Service: services[0]}
	failure := p.try(cmd.Context(), &result)
	if errors.Is(failure, context.Canceled) {
		return failure
	}
	if failure != nil {
		result.Steps = []doctor.Tried{{Health: doctor.Unknown, Text: failure.Error()}}
	}
	if err := p.print(cmd, result); err != nil {
		return err
	}
	if p.textfile != "" {
		if err := writeTextfile(p.textfile, result.metrics(time.Now())); err != nil {
			return err
		}
	}
	if failure != nil {
		return unprepared(failure)
	}
	if worst := doctor.Worst(result.Steps); worst.Health != doctor.Well {
		return &cli.Exit{Code: int(worst.Health)}
	}
	return nil
}

// try runs the probe. It returns an error if nothing could be tried.
func (p *probe) try(ctx context.Context, result *probed) error {
	profile, err := p.app.profileFor(ctx, p.host, []service.Service{result.Service})
	if err != nil {
		return err
	}
	if err := spare(profile, "probe"); err != nil {
		return err
	}
	result.Host = profile.Name
	result.Steps, err = doctor.Probe(ctx, profile, result.Service, p.source.Source, p.timeout)
	return err
}

// print prints the outcome for a monitoring system, or as a JSON object.
func (p *probe) print(cmd *cobra.Command, r probed) error {
	if p.json {
		return cli.JSON(cmd, r.json())
	}
	var b strings.Builder
	b.WriteString(strings.ReplaceAll(quote.Printable(doctor.Summary(r.Steps, r.Host, r.Service)), "|", "/"))
	for i, step := range r.steps() {
		b.WriteString(map[bool]string{true: " | ", false: " "}[i == 0])
		fmt.Fprintf(&b, "%s_%s=%.6fs", strings.ToLower(step.Family), step.Step, step.Took.Seconds())
	}
	b.WriteByte('\n')
	for _, step := range r.steps() {
		fmt.Fprintf(&b, "%-8s %s %-6s %s (%.1f ms)\n", step.Health, step.Family, step.Step, quote.Printable(step.Text),
			float64(step.Took.Microseconds())/1000)
	}
	if _, err := io.WriteString(cmd.OutOrStdout(), b.String()); err != nil {
		return fmt.Errorf("printing the outcome: %w", err)
	}
	return nil
}

// probed is the outcome of a probe.
type probed struct {
	Host    string
	Service service.Service
	Steps   []doctor.Tried
}

// steps returns those that were tried.
func (r probed) steps() []doctor.Tried {
	if len(r.Steps) == 1 && r.Steps[0].Step == "" {
		return nil
	}
	return r.Steps
}

type probeJSON struct {
	Host    string          `json:"host"`
	Service string          `json:"service"`
	State   string          `json:"state"` // ok, warning, critical, unknown
	Text    string          `json:"text"`
	Steps   []probeStepJSON `json:"steps"`
}

type probeStepJSON struct {
	Step    string  `json:"step"`   // before, knock, open, close, after
	Family  string  `json:"family"` // IPv4, IPv6
	State   string  `json:"state"`
	Text    string  `json:"text"`
	Seconds float64 `json:"seconds"`
}

func (r probed) json() probeJSON {
	worst := doctor.Worst(r.Steps)
	out := probeJSON{Host: r.Host, Service: r.Service.String(), State: strings.ToLower(worst.Health.String()),
		Text: doctor.Summary(r.Steps, r.Host, r.Service), Steps: []probeStepJSON{}}
	for _, s := range r.steps() {
		out.Steps = append(out.Steps, probeStepJSON{Step: s.Step, Family: s.Family,
			State: strings.ToLower(s.Health.String()), Text: s.Text, Seconds: s.Took.Seconds()})
	}
	return out
}

// metrics returns the outcome in Prometheus' text format.
func (r probed) metrics(now time.Time) []byte {
	var b bytes.Buffer
	of := fmt.Sprintf("host=%q,service=%q", r.Host, r.Service.String()) // names have no characters to escape
	family := func(name, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %[1]s gauge\n", name, help) }
	family("spa_probe_state", "Worst step of the last probe: 0 ok, 1 warning, 2 critical, 3 unknown.")
	fmt.Fprintf(&b, "spa_probe_state{%s} %d\n", of, doctor.Worst(r.Steps).Health)
	family("spa_probe_timestamp_seconds", "When the last probe ended, in seconds since 1970.")
	fmt.Fprintf(&b, "spa_probe_timestamp_seconds{%s} %.3f\n", of, float64(now.UnixMilli())/1000)
	if len(r.steps()) == 0 {
		return b.Bytes()
	}
	family("spa_probe_step_state", "A step of the last probe: 0 ok, 1 warning, 2 critical, 3 unknown.")
	for _, s := range r.steps() {
		fmt.Fprintf(&b, "spa_probe_step_state{%s,family=%q,step=%q} %d\n", of, s.Family, s.Step, s.Health)
	}
	family("spa_probe_step_duration_seconds", "How long a step of the last probe took.")
	for _, s := range r.steps() {
		fmt.Fprintf(&b, "spa_probe_step_duration_seconds{%s,family=%q,step=%q} %.6f\n", of, s.Family, s.Step,
			s.Took.Seconds())
	}
	return b.Bytes()
}

// writeTextfile replaces a file at once: node_exporter may read it at any time, as another user.
func writeTextfile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".spa-probe-*")
	if err != nil {
		return fmt.Errorf("--textfile: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("--textfile: %w", err)
	}
	return nil
}
