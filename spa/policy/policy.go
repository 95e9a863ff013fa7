// Package policy decides who may open what, from where, when, and for how long.
//
// It answers twice. Source comes before a packet is spent: a packet from an address that cannot be
// its owner's is a copy, and must burn nothing. Authorize comes after: its refusals are answered,
// with a reason for each. Nothing is allowed that a client's file does not name.
package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/config"
)

// Errors of Source. None of them is answered.
var (
	// ErrStated is returned when the packet states another source address than it came from.
	ErrStated = errors.New("the stated source address is not the observed one")
	// ErrFrom is returned when the client's file names the addresses that it may knock from, and this is none.
	ErrFrom = errors.New("not one of the addresses that the client may knock from")
	// ErrDeny is returned when the client's file names this address as one that it may not knock from.
	ErrDeny = errors.New("one of the addresses that the client may not knock from")
	// ErrLink is returned for an IPv4 link-local address (RFC 3927): it may be another machine on every link,
	// and nothing in an IPv4 address says on which.
	ErrLink = errors.New("an IPv4 link-local address may be another machine on every link")
)

// Denial is Authorize's refusal: the reason that the client is told.
type Denial struct {
	Reason  spa.Status
	Service string // the service at fault, where there is one
}

// Error returns the reason in words, with the service at fault.
func (d *Denial) Error() string {
	if d.Service == "" {
		return d.Reason.String()
	}
	return fmt.Sprintf("%s: %s", d.Service, d.Reason)
}

// Holdings tells what clients hold already. [firewall.Firewall] does.
type Holdings interface {
	// GrantsOf returns the live grants of a client.
	GrantsOf(client string, now time.Time) []firewall.Grant
}

// Policy is the configuration's answer to requests. It is used by one goroutine.
type Policy struct {
	services []config.Service // sorted by name
	limits   config.Limits
	zone     *time.Location // of the hours
	holdings Holdings
	used     map[string]*allowance // by client name: only clients that were admitted once are here
}

// New returns the policy that c describes.
func New(c *config.Config, holdings Holdings) *Policy {
	return &Policy{services: c.Services, limits: c.Limits, zone: c.Location(), holdings: holdings,
		used: make(map[string]*allowance)}
}

// With returns the policy that c describes, in p's place: what clients have used of their hourly
// limits and of their ports stays used. One of the two may be used from then on.
func (p *Policy) With(c *config.Config) *Policy {
	next := New(c, p.holdings)
	next.used = p.used
	return next
}

// Source returns an error unless the knock may come from this address: the one it states, if it
// states one, and one that the client's file permits.
func (p *Policy) Source(k *spa.Knock, from netip.Addr) error {
	if from.Is4() && from.IsLinkLocalUnicast() {
		return ErrLink
	}
	if k.Source.IsValid() && k.Source != from {
		return ErrStated
	}
	return permits(k.Client, from)
}

// permits returns why the client's file does not let it come from an address, or nil.
func permits(c *keys.Client, from netip.Addr) error {
	switch {
	case matches(c.Deny, from):
		return ErrDeny
	case len(c.From) > 0 && !matches(c.From, from):
		return ErrFrom
	}
	return nil
}

func matches(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Authorize returns the grants that a spent request to open is worth, all of its services or none.
// From is the address that the packet came from; if it is link-local, with the index of its interface
// as its zone. Grants are counted from start, the time at which the request id was first admitted, so
// that a retry never lasts longer. Where the client holds the same for longer, that is what it is
// granted. Every refusal is a *[Denial]. What is granted is charged to the client's limits.
func (p *Policy) Authorize(k *spa.Knock, from netip.Addr, start, now time.Time) ([]firewall.Grant, error) {
	if err := p.entitled(k, now); err != nil {
		return nil, err
	}
	grants := make([]firewall.Grant, 0, len(k.Services))
	for _, service := range k.Services {
		terms, err := p.terms(k.Client, service)
		if err != nil {
			return nil, err
		}
		to, ok := terms.toward(from)
		if !ok {
			return nil, &Denial{Reason: spa.ReasonOtherFamily, Service: service.String()}
		}
		d := terms.duration(k.For, k.Client.MaxFor)
		allowed := p.allowed(k.Client, terms, now, d)
		if allowed == 0 {
			return nil, &Denial{Reason: spa.ReasonNotNow, Service: service.String()}
		}
		grants = append(grants, firewall.Grant{
			Client:  k.Client.Name,
			Service: service.String(),
			Source:  from,
			Ports:   terms.ports,
			To:      to,
			Until:   now.Add(min(allowed, d-max(0, now.Sub(start)))),
		})
	}
	held := p.holdings.GrantsOf(k.Client.Name, now)
	if err := p.charge(k.Client.Name, grants, held, now); err != nil {
		return nil, err
	}
	for i, g := range grants {
		grants[i].Until = ends(g, held)
	}
	return grants, nil
}

// ends returns when a grant ends beside what its client holds: asking again never shortens.
func ends(g firewall.Grant, held []firewall.Grant) time.Time {
	var until time.Time
	var ports []service.Ports
	for _, h := range held { // a grant of many ranges comes in parts, and is good while all of them are
		if !same(g, h) {
			continue
		}
		if ports = append(ports, h.Ports...); until.IsZero() || h.Until.Before(until) {
			until = h.Until
		}
	}
	if until.After(g.Until) && covered(g.Ports, ports) {
		return until
	}
	return g.Until
}

// Closable returns an error unless the client may ask for these services to be closed: those that
// it may open. It need not state its address: what is closed is only ever its own.
func (p *Policy) Closable(k *spa.Knock, now time.Time) error {
	if expired(k.Client, now) {
		return &Denial{Reason: spa.ReasonExpired}
	}
	for _, service := range k.Services {
		if _, err := p.terms(k.Client, service); err != nil {
			return err
		}
	}
	return nil
}

// Keeps reports whether the client, as its file is now, may go on holding a grant that it was given
// before. A nil client may hold nothing.
func (p *Policy) Keeps(c *keys.Client, g firewall.Grant, now time.Time) bool {
	terms, ok := p.stillAllowed(c, g, now)
	return ok && covered(g.Ports, terms.ports) && terms.reached(g) &&
		g.Until.Sub(now) <= terms.duration(terms.most, c.MaxFor) && p.inTime(c, terms, g, now)
}

// Allows reports whether the client, as its file is now, may ask for what it was granted before. It
// may have to do so again because ports, times or hours have changed.
func (p *Policy) Allows(c *keys.Client, g firewall.Grant, now time.Time) bool {
	_, ok := p.stillAllowed(c, g, now)
	return ok
}

func (p *Policy) stillAllowed(c *keys.Client, g firewall.Grant, now time.Time) (terms, bool) {
	if c == nil || !c.Revoked.IsZero() || expired(c, now) || permits(c, g.Source.WithZone("")) != nil {
		return terms{}, false
	}
	service, err := service.ParseService(g.Service)
	if err != nil {
		return terms{}, false
	}
	t, err := p.terms(c, service)
	return t, err == nil
}

// entitled checks what does not depend on the services.
func (p *Policy) entitled(k *spa.Knock, now time.Time) error {
	if expired(k.Client, now) {
		return &Denial{Reason: spa.ReasonExpired}
	}
	if k.Client.RequireSource && !k.Source.IsValid() {
		return &Denial{Reason: spa.ReasonSourceRequired}
	}
	return nil
}

func expired(c *keys.Client, now time.Time) bool {
	return !c.Expires.IsZero() && !now.Before(c.Expires)
}

// charge takes the grants off the client's allowances, all or none. What the client holds already
// is refreshed and does not count as one more live grant.
func (p *Policy) charge(client string, grants, held []firewall.Grant, now time.Time) error {
	if err := p.tooMany(grants, held); err != nil {
		return err
	}
	a, ok := p.used[client]
	if !ok {
		a = &allowance{grants: bucket{at: now}, ports: bucket{at: now}}
		p.used[client] = a
	}
	hourly := float64(p.limits.GrantsPerHour)
	a.grants.leak(hourly/3600, now)
	a.ports.leak(portsPerSecond, now)
	ports := 0
	for _, g := range grants {
		ports += size(g)
	}
	switch {
	case a.grants.used+float64(len(grants)) > hourly:
		return &Denial{Reason: spa.ReasonTooManyPerHour}
	case a.ports.used+float64(ports) > maxPorts:
		return &Denial{Reason: spa.ReasonTooManyPorts}
	}
	a.grants.used += float64(len(grants))
	a.ports.used += float64(ports)
	return nil
}

// maxPorts is how many ports, counted once for each address, a client may have open: the kernel's
// table of grants has an entry for each, and is shared by all. It takes the kernel some
// milliseconds to change as many, and other clients' requests wait meanwhile. So a client may
// open or refresh as many at once, and then portsPerSecond.
const (
	maxPorts       = 8192
	portsPerSecond = 1000
)

// tooMany returns a denial where grants beside those that are held exceed what a client may hold. One
// that is held already is refreshed, and is not one more.
func (p *Policy) tooMany(grants, held []firewall.Grant) error {
	number, ports := 0, 0
	for i, g := range held { // a grant of many ranges comes in parts
		ports += size(g)
		if i == 0 || !same(g, held[i-1]) {
			number++
		}
	}
	fresh := false
	for _, g := range grants {
		if !slices.ContainsFunc(held, func(h firewall.Grant) bool { return same(g, h) }) {
			number, ports, fresh = number+1, ports+size(g), true
		}
	}
	switch {
	case fresh && number > p.limits.Grants:
		return &Denial{Reason: spa.ReasonTooManyGrants}
	case fresh && ports > maxPorts:
		return &Denial{Reason: spa.ReasonTooManyPorts}
	}
	return nil
}

// same reports whether two grants of one client are for the same thing.
func same(a, b firewall.Grant) bool { return a.Service == b.Service && a.Source == b.Source }

// size is how many entries of the kernel's table a grant takes.
func size(g firewall.Grant) int {
	n := 0
	for _, p := range g.Ports {
		n += int(p.High) - int(p.Low) + 1
	}
	return n * max(1, len(g.To))
}

// allowance is what a client has used of its grants an hour, and of the ports that it may open.
type allowance struct{ grants, ports bucket }

// bucket leaks at the rate of its limit, which may change.
type bucket struct {
	used float64
	at   time.Time
}

// leak gives back what the time since the last call allows. A clock that was set back gives nothing back.
func (b *bucket) leak(perSecond float64, now time.Time) {
	if passed := now.Sub(b.at); passed > 0 {
		b.used = max(0, b.used-perSecond*passed.Seconds())
	}
	b.at = now
}
