package audit

import (
	"cmp"
	"errors"
	"slices"

	"sallyport/spa"
)

// counter identifies packets that are counted together: by verdict and, if a verdict has several, by reason. For an
// answered refusal the reason is the answer's.
type counter struct {
	verdict Verdict
	reason  string
	status  spa.Status
}

// counterOf uses the innermost error, the sentinel, so that the program bounds the number of counters and not the
// packets that it receives.
func counterOf(e Event) counter {
	switch {
	case e.Err == nil:
		return counter{verdict: e.Verdict}
	case e.Verdict.Spent():
		return counter{verdict: e.Verdict, status: e.Receipt.Status}
	}
	return counter{verdict: e.Verdict, reason: reason(e.Err)}
}

func reason(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// String returns "granted", or "unopened: wrong gate tag".
func (c counter) String() string {
	if c.reason == "" {
		return c.verdict.String()
	}
	return c.verdict.String() + ": " + c.reason
}

// Counts returns how many packets ended with each verdict and reason since the start. Answered packets are counted
// by verdict only.
func (l *Log) Counts() map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := make(map[string]uint64, len(l.counts))
	for key, n := range l.counts {
		counts[key.String()] += *n
	}
	return counts
}

// Count is how many packets ended in one way.
type Count struct {
	Verdict Verdict
	Reason  string // the refusal's, or in words the answer's; empty: the verdict has none
	Packets uint64
}

// Tally is [Log.Counts] with the reasons of answered packets too, sorted.
func (l *Log) Tally() []Count {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]Count, 0, len(l.counts))
	for key, n := range l.counts {
		if key.status != 0 {
			key.reason = key.status.String()
		}
		list = append(list, Count{key.verdict, key.reason, *n})
	}
	slices.SortFunc(list, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}

// Faults returns how many packets were refused since the start because the journal could not be used.
func (l *Log) Faults() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}
