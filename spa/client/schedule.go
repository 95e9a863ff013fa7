package client

import (
	"math"
	"math/rand/v2"
	"time"
)

const (
	maxTries    = 16                     // with 30 % loss each way, 2 of 100,000 commands get no receipt
	firstRetry  = 150 * time.Millisecond // if the time allowed is long; earlier if it is short
	grace       = time.Second            // for the other family once one has answered
	leastMargin = 10 * time.Millisecond  // after the time that a gateway states

	// untold is how long after the first packet the others need not state when that was. A gateway treats a packet
	// stamped over 30 s later that does not state it as a new command.
	untold = 25 * time.Second
)

// schedule returns when to send the packets, relative to the first. The i-th is sent at T·(i/16)^p, where T is the time
// allowed: the gaps widen, and the last packet has time to be answered. p is such that the first retry comes after
// firstRetry, but at least 1.5: if the time is short, all packets are sent earlier. Jitter spreads machines that were
// started at the same time.
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
