// Package doctor finds out, step by step, why a gateway does not open.
//
// It looks at what lies between the user and an open port in the order in which a knock
// passes it: the name, the own addresses, the clock, the ports before, each knock port, the
// receipt, the ports after. A gateway is silent on purpose about what it does not accept, so
// there are two kinds of answer: what is certain is said as certain; where silence is all
// there is, the causes are ranked by what else was seen, each with the sign by which the
// gateway's administrator will know it in "spa-server watch".
//
// It does to the gateway what opening the services does, once for each knock port: what is
// granted stays open until it ends.
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

// State is how good what a step found is.
type State string

const (
	// Good: as it should be.
	Good State = "good"
	// Note: worth knowing, and no reason why it should not work.
	Note State = "note"
	// Bad: this is wrong, for certain.
	Bad State = "bad"
	// Suspect: this may be why nothing was answered. Suspects come ranked.
	Suspect State = "suspect"
)

// Steps of an examination, in their order.
const (
	StepName    = "name"    // the gateway's name resolves
	StepAddress = "address" // what this machine's own addresses are, and whether they are translated
	StepClock   = "clock"   // how far the clocks are apart
	StepBefore  = "before"  // the services' ports, before knocking
	StepKnock   = "knock"   // each knock port
	StepReceipt = "receipt" // what the gateway says
	StepAfter   = "after"   // the services' ports, after knocking
	StepSilence = "silence" // why nothing may have been answered
)

// Finding is what a step found.
type Finding struct {
	Step   string     `json:"step"`
	State  State      `json:"state"`
	Text   string     `json:"text"`
	Advice string     `json:"advice,omitzero"` // what to do about it
	Sign   string     `json:"sign,omitzero"`   // what the administrator sees of it
	Status spa.Status `json:"-"`               // the gateway's reason, where it refused
}

// Options are what an examination may be told.
type Options struct {
	// Services are what is asked for; none: all services of the profile.
	Services []service.Service
	Source   client.Source
	// Timeout is how long each look waits for an answer; zero: 5 s.
	Timeout time.Duration
	// Clock asks a time server how far this machine's clock is behind it. Nil: nobody is asked.
	Clock func(context.Context) (time.Duration, error)
}

const (
	defaultTimeout = 5 * time.Second
	// tolerance is how far clocks may differ before the gateway is silent, unless it was told otherwise.
	tolerance = 30 * time.Second
)

// Examine looks at everything between this machine and the services of a host, and yields
// what it finds as it goes. It ends early when ctx ends or the loop is left.
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
				return // what was not waited for is no finding
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

	over       bool // nothing further can be looked at
	families   []*family
	missing    int            // families in which the name is not known
	unresolved string         // why the gateway's name has no address, as far as it was said
	behind     *time.Duration // this machine's clock, by a time server
}

// family is what is known of one of the gateway's addresses. There is seldom more than one of
// an address family.
type family struct {
	name    string // "IPv4", "IPv6"; with the address where there are several
	gateway string // the address that is looked at, as in an URL's host
	local   localAddr
	before  []touch
	knocks  []knocked
	asked   []knocked // one a service, on a port that is answered, the one knocked with first; none while nothing was
}

// known are the services of a profile, sorted by name.
func known(p *keys.Profile) []service.Service {
	names := make([]string, 0, len(p.Services))
	for name := range p.Services {
		names = append(names, name)
	}
	return byName(names)
}

// first is the service that is knocked with: without receipts one that can be tried.
func (e *examination) first() service.Service {
	if !e.profile.Receipts {
		for _, s := range e.services {
			if _, ok := client.FirstTCP(e.ports(s)); ok {
				return s
			}
		}
	}
	return e.services[0]
}

// answered reports whether any family was.
func (e *examination) answered() bool {
	for _, f := range e.families {
		if f.answered() {
			return true
		}
	}
	return false
}
