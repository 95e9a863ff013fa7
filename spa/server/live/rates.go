package live

import (
	"fmt"
	"strings"
	"time"

	"sallyport/spa/server/control"
)

// over is how many answers a rate is taken over.
const over = 5

// rates are how many packets a second were decided, over the last answers.
type rates struct {
	samples []sample // the oldest first
}

// sample is the server's counters at one time.
type sample struct {
	since, at                          time.Time
	granted, denied, noise, aged, lost uint64
}

func sampleOf(s *control.Status) sample {
	out := sample{since: s.Since, at: s.Now, lost: s.Capture.KernelDrops}
	for what, n := range s.Decided {
		switch verdict, _, _ := strings.Cut(what, ": "); verdict {
		case "granted":
			out.granted += n
		case "denied", "failed":
			out.denied += n
		case "unopened":
			out.noise += n
		case "elsewhere", "unspent":
			out.aged += n
		}
	}
	return out
}

func (r *rates) add(a asked) {
	s := sampleOf(a.status)
	if n := len(r.samples); n > 0 && (!r.samples[n-1].since.Equal(s.since) || !s.at.After(r.samples[n-1].at)) {
		r.samples = nil // the server was restarted, or its clock set back
	}
	r.samples = append(r.samples, s)
	r.samples = r.samples[max(0, len(r.samples)-over):]
}

// line returns the rates in words; before the second answer, the counters.
func (r *rates) line() string {
	if len(r.samples) == 0 {
		return ""
	}
	last := r.samples[len(r.samples)-1]
	if len(r.samples) == 1 {
		return fmt.Sprintf("since the start: %d granted, %d refused, %d unusable, noise %d, lost in the kernel %d",
			last.granted, last.denied, last.aged, last.noise, last.lost)
	}
	first := r.samples[0]
	a := func(now, before uint64) string {
		if now < before {
			return "0"
		}
		rate := float64(now-before) / last.at.Sub(first.at).Seconds()
		if rate >= 10 || rate == 0 {
			return fmt.Sprintf("%.0f", rate)
		}
		return fmt.Sprintf("%.1f", rate)
	}
	return fmt.Sprintf("a second: %s granted, %s refused, %s unusable, noise %s, lost in the kernel %s",
		a(last.granted, first.granted), a(last.denied, first.denied), a(last.aged, first.aged),
		a(last.noise, first.noise), a(last.lost, first.lost))
}
