package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// times are measured durations.
type times []time.Duration

// at returns the smallest of the times that a share of them does not exceed, such as 0.5 for the median.
func (t times) at(share float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t))
	rank := int(math.Ceil(share * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// String is the median, p90 and p99 in milliseconds.
func (t times) String() string {
	if len(t) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s / %s / %s", millis(t.at(0.5)), millis(t.at(0.9)), millis(t.at(0.99)))
}

// of is how many of the knocks opened, and how long these took.
func (t times) of(tried int) string { return fmt.Sprintf("%d of %d; %v", len(t), tried, t) }

// millis prints milliseconds with about three digits.
func millis(d time.Duration) string {
	v := d.Seconds() * 1000
	switch {
	case v < 1:
		return fmt.Sprintf("%.3f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// megabytes prints a number of bytes.
func megabytes(n uint64) string { return fmt.Sprintf("%.0f MB", float64(n)/1e6) }
