package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
)

// Health is how good a step of a probe is, in the numbers of monitoring plug-ins (Monitoring Plugins Development
// Guidelines, "Plugin Return Codes").
type Health int

// The states of a probe.
const (
	Well     Health = iota // the door works
	Warning                // it works, but not as it should
	Critical               // users cannot get in, or strangers can
	Unknown                // it could not be tried
)

// String returns the state's name in the output of monitoring plug-ins.
func (h Health) String() string {
	return [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}[h]
}

// worse orders the states from the best to the worst.
var worse = [...]int{Well: 0, Warning: 1, Unknown: 2, Critical: 3}

// Tried is a step of a probe.
type Tried struct {
	Step   string        `json:"step"`   // before, knock, open, close, after
	Family string        `json:"family"` // IPv4, IPv6
	Health Health        `json:"-"`
	Text   string        `json:"text"`
	Took   time.Duration `json:"-"`
}

// Steps of a probe, in order.
const (
	ProbeBefore = "before" // without a grant the port must not accept
	ProbeKnock  = "knock"  // the gateway must grant the service
	ProbeOpen   = "open"   // with the grant the port must accept
	ProbeClose  = "close"  // the gateway must end the grant
	ProbeAfter  = "after"  // without it the port must not accept
)

const (
	// unseen is how long a port must stay dark: the system sends a second SYN after one second.
	unseen = 1500 * time.Millisecond
	// tolerable is how far the clocks may differ before it is worth a warning.
	tolerable = 5 * time.Second
	// cleaning is how long to wait for the answer to a close whose outcome is not reported.
	cleaning = time.Second
)

// Probe tries a guarded service from outside, in each address family at the same time: the port must be shut, open
// after a knock, and shut again after a close. It ends this client's own grants for the service. Each wait for an
// answer takes at most timeout. It returns the steps that were tried, up to the first in each family that leaves
// nothing more to try, and an error if none could be.
func Probe(ctx context.Context, p *keys.Profile, s service.Service, from client.Source,
	timeout time.Duration) ([]Tried, error) {
	command := client.Command{Type: spa.TypeOpen, Services: []service.Service{s}, Source: from, Timeout: timeout}
	open, err := client.Prepare(ctx, p, command)
	if err != nil {
		return nil, err
	}
	command.Type = spa.TypeClose
	shut, err := client.Prepare(ctx, p, command)
	if err != nil {
		return nil, err
	}
	tried := make([][]Tried, len(open.Routes))
	var all sync.WaitGroup
	for i, route := range open.Routes {
		j := slices.IndexFunc(shut.Routes, func(r client.Route) bool { return r.Family() == route.Family() })
		if j < 0 {
			continue // a name that changed between the two
		}
		d := &door{service: s, open: *open, shut: *shut, timeout: timeout}
		d.open.Routes, d.shut.Routes = open.Routes[i:i+1], shut.Routes[j:j+1]
		all.Go(func() { tried[i] = d.try(ctx) })
	}
	all.Wait()
	return slices.Concat(tried...), ctx.Err()
}

// Worst returns the worst of the steps, the first of several; Unknown if there are none.
func Worst(steps []Tried) Tried {
	if len(steps) == 0 {
		return Tried{Health: Unknown, Text: "nothing could be tried"}
	}
	worst := steps[0]
	for _, s := range steps[1:] {
		if worse[s.Health] > worse[worst.Health] {
			worst = s
		}
	}
	return worst
}

// door is a service in one address family.
type door struct {
	service    service.Service
	open, shut client.Plan // each with one route, for one Knock
	timeout    time.Duration
	steps      []Tried
	granted    client.Answer
}

// try takes the steps in order. A grant is ended even if ctx is.
func (d *door) try(ctx context.Context) []Tried {
	if d.step(ProbeBefore, func() (Health, string) { return d.before(ctx) }) == Critical {
		return d.steps
	}
	d.step(ProbeKnock, func() (Health, string) { return d.knock(ctx) })
	if d.granted.Verdict != client.Opened && d.granted.Verdict != client.Sent {
		return d.steps
	}
	d.step(ProbeOpen, func() (Health, string) { return d.opened(ctx) })
	ctx = context.WithoutCancel(ctx)
	d.step(ProbeClose, func() (Health, string) { return d.close(ctx) })
	d.step(ProbeAfter, func() (Health, string) { return d.after(ctx) })
	return d.steps
}

// step records a step and returns how good it is. A step without a text was not applicable.
func (d *door) step(name string, try func() (Health, string)) Health {
	began := time.Now()
	health, text := try()
	if text != "" {
		d.steps = append(d.steps, Tried{Step: name, Family: d.open.Routes[0].Family(), Health: health, Text: text,
			Took: time.Since(began)})
	}
	return health
}

// before tries the port without a grant, at each address of the gateway.
func (d *door) before(ctx context.Context) (Health, string) {
	port, ok := client.FirstTCP(d.open.Ports(d.service))
	if !ok {
		return Well, ""
	}
	found := d.touch(ctx, d.addresses(), port, unseen, false)
	if found.reach != open {
		return Well, found.shut()
	}
	d.end(ctx)
	if again := d.touch(ctx, d.addresses(), port, unseen, false); again.reach != open {
		return Warning, found.name() + " was open before the knock, until this client's own grant was ended"
	}
	return Critical, found.name() + " accepts connections without a knock: the guard is missing, or another client has " +
		"a grant for this address (spa-server status)"
}

// knock requests the service.
func (d *door) knock(ctx context.Context) (Health, string) {
	for answer := range d.open.Knock(ctx) {
		d.granted = answer
	}
	a := d.granted
	switch {
	case ctx.Err() != nil:
		d.end(context.WithoutCancel(ctx))
		return Unknown, "interrupted"
	case a.Verdict == client.Refused && a.Receipt.Status == spa.ReasonTooEarly:
		return Warning, fmt.Sprintf("the gateway has just started and accepts no knocks until %s",
			a.Receipt.Again.Local().Format(time.TimeOnly))
	case a.Verdict == client.Refused:
		return Critical, fmt.Sprintf("the gateway refuses %s: %s", d.service, a.Receipt.Status)
	case a.Verdict == client.Over:
		return Critical, fmt.Sprintf("the gateway grants %s for a shorter time than its answer takes", d.service)
	case a.Verdict == client.Silent && errors.Is(a.Err, client.ErrNoAnswer):
		return d.silent(ctx)
	case a.Verdict == client.Silent:
		return Unknown, a.Err.Error()
	case a.Offset.Abs() > tolerable:
		return Warning, fmt.Sprintf("granted, but the clocks differ by %s: a gateway ignores knocks that are off by more "+
			"than its window (30s by default)", service.FormatDuration(a.Offset.Abs().Round(time.Second)))
	case a.Receipt == nil:
		return Well, "sent: this gateway sends no receipts"
	}
	return Well, fmt.Sprintf("granted to %s (packets: %d)", a.Receipt.Source, a.Tries)
}

// silent tells lost receipts from a gateway that did not act.
func (d *door) silent(ctx context.Context) (Health, string) {
	port, ok := client.FirstTCP(d.open.Ports(d.service))
	opened := ok && d.open.Profile.Receipts && d.touch(ctx, d.addresses(), port, unseen, false).reach == open
	d.end(context.WithoutCancel(ctx))
	if opened {
		return Critical, "no answer, but the port opened: the gateway's receipts are lost on the way"
	}
	return Critical, fmt.Sprintf("no answer from %s: spa-client doctor %s --host %s ranks the causes",
		list(d.addresses()), d.service, d.open.Profile.Name)
}

// opened tries the port with the grant.
func (d *door) opened(ctx context.Context) (Health, string) {
	port, ok := d.port()
	if !ok {
		return Well, ""
	}
	t := d.touch(ctx, []netip.Addr{d.granted.Gateway}, port, d.timeout, true)
	switch t.reach {
	case open:
		return Well, t.name() + " accepts connections"
	case refused:
		return Critical, t.name() + " was granted but refuses connections: nothing listens there, or another firewall " +
			"rejects them"
	case barred:
		return Critical, fmt.Sprintf("%s was granted but cannot be reached: %v", t.name(), t.err)
	}
	return Critical, t.name() + " was granted but does not answer: another firewall drops the connection, or it comes " +
		"from another address than the knock"
}

// close ends the grant.
func (d *door) close(ctx context.Context) (Health, string) {
	var a client.Answer
	for answer := range d.shut.Knock(ctx) {
		a = answer
	}
	switch a.Verdict {
	case client.Closed:
		return Well, "the gateway ended the grant"
	case client.Sent:
		return Well, "sent: this gateway sends no receipts"
	case client.Refused:
		return Warning, fmt.Sprintf("the gateway refuses to close %s: %s", d.service, a.Receipt.Status)
	}
	return Warning, "no answer to the close: the grant lasts until its time is over"
}

// after tries the port without the grant. The close may still be on its way if no receipt confirmed it.
func (d *door) after(ctx context.Context) (Health, string) {
	port, ok := d.port()
	if !ok {
		return Well, ""
	}
	ctx, cancel := context.WithTimeout(ctx, max(d.timeout, 2*unseen))
	defer cancel()
	for {
		t := d.touch(ctx, []netip.Addr{d.granted.Gateway}, port, unseen, false)
		switch {
		case t.reach != open:
			return Well, t.shut()
		case ctx.Err() != nil && d.steps[len(d.steps)-1].Health != Well:
			return Warning, t.name() + " still accepts connections: the close was not confirmed"
		case ctx.Err() != nil:
			return Critical, t.name() + " still accepts connections after the close: the guard is missing, or another " +
				"client has a grant for this address (spa-server grants)"
		}
		pause(ctx, attempt)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// end closes the service without waiting long for the answer.
func (d *door) end(ctx context.Context) {
	plan := d.shut
	plan.Command.Timeout = cleaning
	plan.Routes = slices.Clone(plan.Routes)
	plan.Routes[0].ID = spa.NewRequestID() // the gateway acts once on each
	for range plan.Knock(ctx) {
	}
}

// addresses returns the gateway's, each once.
func (d *door) addresses() []netip.Addr {
	var out []netip.Addr
	for _, to := range d.open.Routes[0].To {
		if !slices.Contains(out, to.Addr()) {
			out = append(out, to.Addr())
		}
	}
	return out
}

// port returns the first TCP port that was granted.
func (d *door) port() (uint16, bool) {
	if r := d.granted.Receipt; r != nil && len(r.Services) > 0 {
		return client.FirstTCP(r.Services[0].Ports)
	}
	return client.FirstTCP(d.open.Ports(d.service))
}

// touch tries a port at some addresses at once, and returns the most open outcome.
func (d *door) touch(ctx context.Context, at []netip.Addr, port uint16, within time.Duration, patience bool) touched {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	all := make([]touched, len(at))
	var tries sync.WaitGroup
	for i, addr := range at {
		all[i] = touched{touch{service: d.service, port: port, local: d.open.Routes[0].Local, once: once(&d.granted)},
			addr}
		tries.Go(func() { all[i].try(ctx, addr, patience) })
	}
	tries.Wait()
	return slices.MaxFunc(all, func(a, b touched) int { return int(a.reach) - int(b.reach) })
}

// touched is an attempt to connect, and to which address.
type touched struct {
	touch
	at netip.Addr
}

func (t touched) name() string { return fmt.Sprintf("%s (tcp/%d at %s)", t.service, t.port, t.at) }

// shut describes a port that does not accept.
func (t touched) shut() string {
	switch t.reach {
	case refused:
		return t.name() + " refuses connections"
	case barred:
		return fmt.Sprintf("%s is shut: %v", t.name(), t.err)
	}
	return t.name() + " is dark"
}

// Summary returns the first line of a monitoring plug-in's output: the worst step, or success.
func Summary(steps []Tried, host string, s service.Service) string {
	worst := Worst(steps)
	if worst.Health != Well {
		return fmt.Sprintf("SPA %s: %s on %s: %s", worst.Health, s, host,
			strings.TrimPrefix(worst.Family+": "+worst.Step+": "+worst.Text, ": : "))
	}
	var took time.Duration
	for _, step := range steps {
		if step.Step == ProbeKnock {
			took = max(took, step.Took)
		}
	}
	return fmt.Sprintf("SPA OK: %s on %s: shut, opened by a knock in %.1f ms, closed", s, host,
		float64(took.Microseconds())/1000)
}
