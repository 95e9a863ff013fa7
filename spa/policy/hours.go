package policy

import (
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
)

// allowed returns how much of d, starting now, the client may keep the service open on these terms: until the first
// end of the client's hours, the terms' hours, and the client's key. Zero: not now.
func (p *Policy) allowed(c *keys.Client, t terms, now time.Time, d time.Duration) time.Duration {
	d = open(c.When, now.In(p.zone), d)
	for _, hours := range t.within {
		d = open(hours, now.In(p.zone), d)
	}
	if !c.Expires.IsZero() {
		d = min(d, c.Expires.Sub(now))
	}
	return max(0, d)
}

// open returns how much of d, starting at now, lies in the spans without a gap; all of d if there are none. Spans are
// in local time, in now's location: an hour that occurs twice in autumn counts twice, and one that is skipped in
// spring does not occur.
func open(spans []service.Span, now time.Time, d time.Duration) time.Duration {
	if len(spans) == 0 {
		return d
	}
	var sum time.Duration
	for sum < d {
		at := now.Add(sum)
		left := longest(spans, at)
		if left == 0 {
			break
		}
		if _, change := at.ZoneBounds(); !change.IsZero() {
			left = min(left, change.Sub(at)) // look again at what the clock shows then
		}
		sum += left
	}
	return min(sum, d)
}

// longest returns what is left at a time of the span that ends last.
func longest(spans []service.Span, at time.Time) time.Duration {
	var left time.Duration
	for _, s := range spans {
		left = max(left, s.Remaining(at))
	}
	return left
}

// clockStep is how much later than its hours a grant may seem to end, because the clock was set after it was clipped
// to them.
const clockStep = 2 * time.Second

// inTime reports whether a live grant ends within the hours of the client and of the terms.
func (p *Policy) inTime(c *keys.Client, t terms, g firewall.Grant, now time.Time) bool {
	left := g.Until.Sub(now)
	allowed := p.allowed(c, t, now, left)
	return allowed > 0 && left <= allowed+clockStep
}
