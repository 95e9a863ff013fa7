// Package doctor finds out, step by step, why a gateway does not open a port.
//
// It checks everything between the user and an open port in the order in which a knock passes it: the name, this
// machine's addresses, the clock, the ports before, each knock port, the receipt, the ports after. A gateway
// deliberately stays silent about packets that it does not accept, so there are two kinds of finding. Facts are
// reported as certain. If there is only silence, the possible causes are ranked by the other findings, each with the
// sign that the gateway's administrator will see in "spa-server watch".
//
// It opens the services as any knock does, once for each knock port: grants stay open until they end.
//
// [Probe] answers a smaller question for monitoring systems: does the door work? It leaves no grant.
package doctor

import (
	"context"
	"iter"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
)

// State is how good a finding is.
type State string

const (
	// Good: as it should be.
	Good State = "good"
	// Note: worth knowing, but it should work.
	Note State = "note"
	// Bad: certainly wrong.
	Bad State = "bad"
	// Suspect: a possible cause of the silence. Suspects are ranked.
	Suspect State = "suspect"
)

// Steps of an examination, in order.
const (
	StepName    = "name"    // the gateway's name resolves
	StepAddress = "address" // this machine's addresses, and whether they are translated
	StepClock   = "clock"   // how far the clocks are apart
	StepBefore  = "before"  // the services' ports, before knocking
	StepKnock   = "knock"   // each knock port
	StepReceipt = "receipt" // what the gateway says
	StepAfter   = "after"   // the services' ports, after knocking
	StepSilence = "silence" // possible reasons for the silence
)

// Finding is the result of a step.
type Finding struct {
	Step   string     `json:"step"`
	State  State      `json:"state"`
	Text   string     `json:"text"`
	Advice string     `json:"advice,omitzero"` // what to do about it
	Sign   string     `json:"sign,omitzero"`   // what the administrator sees
	Status spa.Status `json:"-"`               // the gateway's reason, if it refused
}

// Options are the settings of an examination.
type Options struct {
	// Services are the services to request; none: all services of the profile.
	Services []service.Service
	Source   client.Source
	// Timeout is how long each check waits for an answer; zero: 5 s.
	Timeout time.Duration
	// Clock asks a time server how far this machine's clock is behind it. Nil: no time server is asked.
	Clock func(context.Context) (time.Duration, error)
}

const (
	defaultTimeout = 5 * time.Second
	// tolerance is how far clocks may differ before a gateway ignores knocks, by default.
	tolerance = 30 * time.Second
)

// Examine checks everything between this machine and the services of a host, and yields the findings as it goes. It
// ends early when ctx ends or the loop is left.
func Examine(ctx context.Context, p *keys.Profile, o Options) iter.Seq[Finding] {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	return func(yield func(Finding) bool) {
		e := &examination{ctx: ctx, profile: p, options: o, services: o.Services}
		if len(e.services) == 0 {
			e.services = known(p)
		}
		if len(e.services) == 0 {
			yield(Finding{Step: StepName, State: Bad, Text: "the profile of " + p.Name + " names no service",
				Advice: "name one: spa-client doctor ssh, or a port such as tcp/22"})
			return
		}
		for _, step := range []func() []Finding{e.name, e.address, e.clock, e.before, e.knock,
			e.receipt, e.after, e.silence} {
			found := step()
			if ctx.Err() != nil {
				return // an interrupted check is not a finding
			}
			for _, f := range found {
				if !yield(f) {
					return
				}
			}
			if e.over {
				return
			}
		}
	}
}

// examination is what is known so far.
type examination struct {
	ctx      context.Context
	profile  *keys.Profile
	options  Options
	services []service.Service

	over       bool // nothing else can be checked
	families   []*family
	missing    int            // families in which the name is unknown
	unresolved string         // why the gateway's name has no address, if known
	behind     *time.Duration // this machine's clock, by a time server
}

// family is what is known about one of the gateway's addresses. There is seldom more than one in an address family.
type family struct {
	name    string // "IPv4", "IPv6"; with the address if there are several
	gateway string // the address to check, in the form of a URL's host
	local   localAddr
	before  []touch
	knocks  []knocked
	asked   []knocked // one per service, on a port that answers, the first service first; none until a port answers
}

// known returns the services of a profile, sorted by name.
func known(p *keys.Profile) []service.Service {
	names := make([]string, 0, len(p.Services))
	for name := range p.Services {
		names = append(names, name)
	}
	return byName(names)
}

// first returns the service to knock with: without receipts, one whose port can be tried.
func (e *examination) first() service.Service {
	if !e.profile.Receipts {
		for _, s := range e.services {
			if _, ok := client.FirstTCP(e.profile.Ports(s)); ok {
				return s
			}
		}
	}
	return e.services[0]
}

// answered reports whether any family was answered.
func (e *examination) answered() bool {
	for _, f := range e.families {
		if f.answered() {
			return true
		}
	}
	return false
}
