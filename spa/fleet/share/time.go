package share

import "time"

// Times of the protocol.
const (
	// Window is how far a stamp may be off at most for a shared address, even if a gateway's own window is longer, and how
	// far the clocks of two members may differ. Members need not have the same window.
	Window = time.Minute
	// Longest is for how long a member that joins is told of a grant, at most. Members keep floors for longer: there is no
	// outcome without the floor that ended it.
	Longest = 24 * time.Hour
	// SessionTTL is how long the store keeps a session after it was asked to.
	SessionTTL = 10 * time.Second
	// SessionUse is how long a member relies on its session after it asked. The rest is for what it has begun, and for
	// clocks that do not run equally fast.
	SessionUse = 8 * time.Second
	// SessionEvery is how often a member asks.
	SessionEvery = 2 * time.Second
	// AnswerWithin is how long a member waits for an answer, and an agent at most for the store.
	AnswerWithin = 2 * time.Second
	// RetryWithin is how long a client may retry without saying that it continues.
	RetryWithin = 30 * time.Second

	leaseSlack = 5 * time.Second // leases are whole seconds, and may be granted before the request arrives
)

// Lease returns how long the store must keep nonces and request ids, at least. The clocks of two members may differ by
// the freshness window.
func Lease(window time.Duration) time.Duration { return 3*window + RetryWithin + leaseSlack }

// Undone reports whether a command that was first stamped at first was certainly not done if the store has no request
// id of it at a later time than now: no packet of it can have been forgotten. A member does not act on others.
func Undone(first, now time.Time, window time.Duration) bool {
	return first.Add(Lease(window)).After(now.Add(2 * window))
}
