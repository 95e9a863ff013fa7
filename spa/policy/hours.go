package policy

import (
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
)

// allowed returns for how much of d, beginning now, the client may have it open on these terms: until
// the first end of the client's hours, those of the terms, and the client's key. Zero: not now.
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

// open returns how much of d, beginning at now, lies in the spans without a gap: all of it where there
// are none. What counts is what the clock on the wall shows in now's location. An hour that it shows
// twice in autumn counts twice, and one that it skips in spring does not come.
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
		left = max(left, s.Left(at))
	}
	return left
}

// clockStep is how much later than its hours a grant may seem to end because the clock was set since:
// it was clipped to them by the clock as it was.
const clockStep = 2 * time.Second

// inTime reports whether a grant that is held ends within the hours of the client and of the terms.
func (p *Policy) inTime(c *keys.Client, t terms, g firewall.Grant, now time.Time) bool {
	left := g.Until.Sub(now)
	allowed := p.allowed(c, t, now, left)
	return allowed > 0 && left <= allowed+clockStep
}
