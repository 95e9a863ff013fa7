package server

import (
	"fmt"
	"slices"
	"testing"

	"sallyport/spa"
	"sallyport/spa/audit"
)

// TestEveryOutcomeIsListed: Prometheus sees exactly the possible outcomes of a packet, from the start.
func TestEveryOutcomeIsListed(t *testing.T) {
	var want []string
	note := func(v audit.Verdict, reason string) { want = append(want, fmt.Sprintf("%s: %s", v, reason)) }
	for _, r := range refusals {
		note(r.verdict, r.err.Error())
	}
	for status := range denials {
		if status == spa.ReasonFailed || status == spa.ReasonNoProgram {
			note(audit.Failed, status.String())
			continue
		}
		note(audit.Denied, status.String())
	}
	note(audit.Repeated, "")
	note(audit.Rechecked, "")
	note(audit.Granted, "")
	note(audit.Closed, "")
	var got []string
	for _, c := range outcomes() {
		got = append(got, fmt.Sprintf("%s: %s", c.Verdict, c.Reason))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestEveryOutcomeIsCounted: each packet raises exactly one existing count by one, and status agrees.
func TestEveryOutcomeIsCounted(t *testing.T) {
	for name, refusal := range refusals {
		b := newBench(t)
		p := refusal.make(b)
		before := allCounts(b.s.audit.Tally())
		b.arrive(p)
		rises(b, name, before, audit.Count{Verdict: refusal.verdict, Reason: refusal.err.Error()})
	}
	for status, deny := range denials {
		b := newBench(t)
		deny(b)
		verdict := audit.Denied
		if status == spa.ReasonFailed || status == spa.ReasonNoProgram {
			verdict = audit.Failed
		}
		rises(b, status.String(), nil, audit.Count{Verdict: verdict, Reason: status.String()})
	}
}

// rises checks that only the wanted count has risen since before. If before is nil, all were zero, and other counts may
// have risen too.
func rises(b *bench, name string, before []audit.Count, want audit.Count) {
	b.Helper()
	after := allCounts(b.s.audit.Tally())
	if len(after) != len(outcomes()) {
		b.Errorf("%s: %d counts, want the %d that are known: %v", name, len(after), len(outcomes()), after)
	}
	of := func(list []audit.Count, of audit.Count) (n uint64) {
		for _, c := range list {
			if c.Verdict == of.Verdict && c.Reason == of.Reason {
				n += c.Packets
			}
		}
		return n
	}
	if got := of(after, want) - of(before, want); got != 1 {
		b.Errorf("%s: its count rose by %d", name, got)
	}
	for _, c := range after {
		if before != nil && c.Reason != want.Reason && c.Packets != of(before, c) {
			b.Errorf("%s: another count has risen: %v", name, c)
		}
	}
	byVerdict := make(map[string]uint64)
	for _, c := range after {
		word := c.Verdict.String()
		if !c.Verdict.Spent() {
			word += ": " + c.Reason
		}
		byVerdict[word] += c.Packets
	}
	for word, n := range b.s.audit.Counts() {
		if byVerdict[word] != n {
			b.Errorf("%s: status says %d × %s, the metrics %d", name, n, word, byVerdict[word])
		}
	}
}
