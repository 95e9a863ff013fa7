// Package policy decides who may open what, from where, when, and for how long.
//
// It decides twice. Source decides before a packet is spent: a packet from an address that its owner cannot have is a
// copy, and must not spend anything. Authorize decides afterwards: its refusals are answered, each with a reason.
// Only what a client's file names is allowed.
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

// Errors of Source. Packets with them are not answered.
var (
	// ErrStated: the packet came from another address than it states.
	ErrStated = errors.New("the stated source address is not the observed one")
	// ErrFrom: the client's file lists the addresses that it may knock from, and this is not one of them.
	ErrFrom = errors.New("not an address that the client may knock from")
	// ErrDeny: the client's file lists this address as one that it must not knock from.
	ErrDeny = errors.New("an address that the client may not knock from")
	// ErrLink: an IPv4 link-local address (RFC 3927) may be another machine on every link, and the address does not say
	// which.
	ErrLink = errors.New("an IPv4 link-local address may be another machine on every link")
)

// Denial is a refusal by Authorize: the reason that the client gets.
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

// Holdings knows the live grants of clients. [firewall.Firewall] implements it.
type Holdings interface {
	// GrantsOf returns the live grants of a client.
	GrantsOf(client string, now time.Time) []firewall.Grant
}

// Policy decides requests by the configuration. Only one goroutine may use it.
type Policy struct {
	services []config.Service // sorted by name
	limits   config.Limits
	zone     *time.Location // of the hours
	admits   bool           // grants are elements of the administrator's own sets
	holdings Holdings
	used     map[string]*allowance // by client name: only clients that were admitted once are here
}

// New returns the policy that c describes.
func New(c *config.Config, holdings Holdings) *Policy {
	return &Policy{services: c.Services, limits: c.Limits, zone: c.Location(), holdings: holdings,
		admits: c.Firewall.Mode == "admit",
		used:   make(map[string]*allowance)}
}

// With returns the policy that c describes, to replace p: what clients have used of their limits stays used. Callers
// must not use p afterwards.
func (p *Policy) With(c *config.Config) *Policy {
	next := New(c, p.holdings)
	next.used = p.used
	return next
}

// Source returns an error unless the knock may come from this address: the one that it states, if it states one, and
// one that the client's file permits.
func (p *Policy) Source(k *spa.Knock, from netip.Addr) error {
	if from.Is4() && from.IsLinkLocalUnicast() {
		return ErrLink
	}
	if k.Source.IsValid() && k.Source != from {
		return ErrStated
	}
	return permits(k.Client, from)
}

// permits returns why the client's file forbids an address, or nil.
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

// Authorize returns the grants for a spent open request, for all of its services or none. From is the address that
// the packet came from, which is let in unless the request names another address or a network; if it is link-local,
// with the index of its interface as its zone. Grants are counted from start, the time at which the request id was
// first admitted, so that a retry never lasts longer. If the client already holds the same for longer, it keeps that.
// Every refusal is a *[Denial]. Grants are charged to the client's limits.
func (p *Policy) Authorize(k *spa.Knock, from netip.Addr, start, now time.Time) ([]firewall.Grant, error) {
	if err := p.entitled(k, now); err != nil {
		return nil, err
	}
	peer, err := p.peer(k, from)
	if err != nil {
		return nil, err
	}
	grants := make([]firewall.Grant, 0, len(k.Services))
	for _, service := range k.Services {
		terms, err := p.terms(k.Client, service)
		if err != nil {
			return nil, err
		}
		if !terms.isFor(peer) {
			return nil, &Denial{Reason: spa.ReasonNetwork, Service: service.String()}
		}
		to, ok := terms.toward(peer.Source)
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
			Source:  peer.Source,
			Bits:    peer.Bits,
			Lent:    peer.Lent,
			Ports:   terms.ports,
			To:      to,
			Until:   now.Add(min(allowed, d-max(0, now.Sub(start)))),
			Asked:   k.First,
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

// ends returns when a grant ends beside those that its client holds: asking again never shortens one.
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

// Closable returns an error unless the client may close these services: those that it may open. It need not state its
// address: it can only close its own grants.
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

// Keeps reports whether the client, as its file is now, may keep a grant. A nil client may keep nothing.
func (p *Policy) Keeps(c *keys.Client, g firewall.Grant, now time.Time) bool {
	terms, ok := p.stillAllowed(c, g, now)
	return ok && covered(g.Ports, terms.ports) && terms.reached(g) && terms.isFor(g.Peer()) &&
		g.Until.Sub(now) <= terms.duration(terms.most, c.MaxFor) && p.inTime(c, terms, g, now)
}

// Allows reports whether the client, as its file is now, may ask again for a grant that it had. It may have to,
// because ports, times or hours have changed.
func (p *Policy) Allows(c *keys.Client, g firewall.Grant, now time.Time) bool {
	_, ok := p.stillAllowed(c, g, now)
	return ok
}

// OfReplacedKey reports whether the grant may have been opened with a key that has been replaced and has ended since: a
// grant names its client and no key, so what may have begun before that end counts.
func (p *Policy) OfReplacedKey(c *keys.Client, g firewall.Grant, now time.Time) bool {
	return c != nil && c.Previous != nil && !now.Before(c.Previous.Until) &&
		p.MayBeFrom(c, g, c.Previous.Until, now)
}

// MayBeFrom reports whether a grant that the client may keep may have begun before an earlier time.
func (p *Policy) MayBeFrom(c *keys.Client, g firewall.Grant, before, now time.Time) bool {
	t, ok := p.stillAllowed(c, g, now)
	if !ok {
		return false
	}
	longest := t.duration(t.most, c.MaxFor) + clockStep // files have whole seconds, too
	return !g.Until.After(before.Add(longest))
}

func (p *Policy) stillAllowed(c *keys.Client, g firewall.Grant, now time.Time) (terms, bool) {
	if c == nil || !c.Revoked.IsZero() || expired(c, now) || !p.lets(c, g.Peer()) {
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

// charge charges the grants to the client's limits, all or none. A grant that the client already holds is refreshed
// and is not one more.
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

// maxPorts is how many ports, counted once for each address, a client may have open. The kernel's table has an entry
// for each, which all clients share, and takes some milliseconds to change that many while other clients wait. A
// client may open or refresh so many at once, and then portsPerSecond.
const (
	maxPorts       = 8192
	portsPerSecond = 1000
)

// tooMany returns a denial if the grants, beside those that are held, exceed the client's limit. A refreshed grant is
// not one more.
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
func same(a, b firewall.Grant) bool { return a.Service == b.Service && a.Peer() == b.Peer() }

// size returns how many entries of the kernel's table a grant takes.
func size(g firewall.Grant) int {
	n := 0
	for _, p := range g.Ports {
		n += int(p.High) - int(p.Low) + 1
	}
	return n * max(1, len(g.To))
}

// allowance is what a client has used of its hourly grants, and of the ports that it may open.
type allowance struct{ grants, ports bucket }

// bucket leaks at the rate of its limit, which may change.
type bucket struct {
	used float64
	at   time.Time
}

// leak credits the time since the last call. A clock that was set back credits nothing.
func (b *bucket) leak(perSecond float64, now time.Time) {
	if passed := now.Sub(b.at); passed > 0 {
		b.used = max(0, b.used-perSecond*passed.Seconds())
	}
	b.at = now
}
