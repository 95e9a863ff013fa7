package main

import (
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
)

// answerJSON is an answer as --json prints it: an object for each address family.
type answerJSON struct {
	Host     string        `json:"host"`
	Gateway  netip.Addr    `json:"gateway"`
	Verdict  string        `json:"verdict"` // open, closed, refused, sent, over, no answer
	Reason   string        `json:"reason,omitempty"`
	Source   *netip.Addr   `json:"source,omitempty"` // the granted address
	LetIn    string        `json:"let_in,omitempty"` // with --let-in: the network or address that was let in
	Own      *netip.Addr   `json:"own,omitempty"`    // the address that packets to the gateway leave from
	Services []serviceJSON `json:"services"`
	Ahead    float64       `json:"gateway_clock_ahead_seconds"`
	Packets  int           `json:"packets"`
	Again    *time.Time    `json:"again,omitempty"` // the gateway accepts knocks after it, by this machine's clock
}

// serviceJSON is the outcome for a service.
type serviceJSON struct {
	Service string     `json:"service"`
	Ports   []string   `json:"ports"`
	Until   *time.Time `json:"until,omitempty"` // by this machine's clock
	Seconds float64    `json:"seconds,omitempty"`
	Started bool       `json:"started,omitempty"` // the gateway starts the service's program
	Once    bool       `json:"once,omitempty"`    // only the first connection to a port gets in
}

func (k *knock) answerJSON(a client.Answer) answerJSON {
	out := answerJSON{Host: k.plan.Profile.Name, Gateway: a.Gateway, Verdict: a.Verdict.String(),
		Ahead: a.Offset.Seconds(), Packets: a.Tries}
	if failure := k.failure(a); failure != nil {
		out.Reason = failure.Error()
	}
	if a.Receipt != nil {
		if a.Verdict == client.Refused {
			out.Reason = a.Receipt.Status.String()
		}
		if a.Receipt.Source.IsValid() {
			out.Source = &a.Receipt.Source
		}
		if a.Receipt.LetIn.IsValid() {
			out.LetIn = service.NetworkText(a.Receipt.LetIn)
		}
		if a.Receipt.Status == spa.ReasonTooEarly {
			out.Again = &a.Receipt.Again
		}
	}
	if a.Route.Own.IsValid() {
		out.Own = &a.Route.Own
	}
	for i, s := range k.plan.Command.Services {
		out.Services = append(out.Services, k.serviceJSON(a, i, s))
	}
	return out
}

func (k *knock) serviceJSON(a client.Answer, i int, s service.Service) serviceJSON {
	out := serviceJSON{Service: s.String(), Ports: k.ports(a, i, s), Seconds: granted(a, i).For.Seconds(),
		Started: granted(a, i).Started, Once: granted(a, i).Once}
	if until := a.Until(i); a.Verdict == client.Opened && !until.IsZero() {
		out.Until = &until
	}
	return out
}

// routeJSON is what --dry-run --json prints for an address family.
type routeJSON struct {
	Host     string           `json:"host"`
	Client   string           `json:"client"`
	Type     string           `json:"type"`
	Services []string         `json:"services"`
	Seconds  float64          `json:"seconds,omitempty"`
	Source   string           `json:"source"` // observed, or the stated address
	LetIn    string           `json:"let_in,omitempty"`
	To       []netip.AddrPort `json:"to"`
}

func (k *knock) describeJSON(cmd *cobra.Command) error {
	c := k.plan.Command
	for _, r := range k.plan.Routes {
		out := routeJSON{Host: k.plan.Profile.Name, Client: k.plan.Profile.Client, Type: c.Type.String(),
			Seconds: c.For.Seconds(), Source: "observed", To: r.To}
		if r.Source.IsValid() {
			out.Source = r.Source.String()
		}
		if c.LetIn.IsValid() {
			out.LetIn = service.NetworkText(c.LetIn)
		}
		for _, s := range c.Services {
			out.Services = append(out.Services, s.String())
		}
		if err := cli.JSON(cmd, out); err != nil {
			return err
		}
	}
	return nil
}
