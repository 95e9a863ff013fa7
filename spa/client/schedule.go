package client

import (
	"math"
	"math/rand/v2"
	"time"
)

const (
	maxTries    = 16                     // at 30 % loss each way 2 of 100,000 commands stay without a receipt
	firstRetry  = 150 * time.Millisecond // where the time allowed is long; sooner where it is short
	grace       = time.Second            // what the other family has left when one has answered
	leastMargin = 10 * time.Millisecond  // after the time that a gateway says

	// untold is how long after the first packet others need not tell when that was. To a gateway
	// one that is stamped over 30 s later, and does not tell it, is a new command.
	untold = 25 * time.Second
)

// schedule returns when packets are sent, counted from the first. The i-th goes at
// T·(i/16)^p, with T the time allowed: the gaps widen, and the last packet has time to be
// answered. p is such that the first retry is after firstRetry, but at least 1.5: where the
// time is short all packets go sooner. Jitter keeps machines that were started together from
// staying together.
func schedule(timeout time.Duration) []time.Duration {
	spread := float64(timeout)
	power := max(1.5, math.Log(spread/float64(firstRetry))/math.Log(maxTries))
	at := make([]time.Duration, maxTries)
	for i := 1; i < maxTries; i++ {
		exact := spread * math.Pow(float64(i)/maxTries, power)
		before := spread * math.Pow(float64(i-1)/maxTries, power)
		jitter := (rand.Float64() - 0.5) * 0.4 * (exact - before)
		at[i] = time.Duration(exact + jitter)
	}
	return at
}
