package capture

// A verdict is the result for a packet that came through the kernel filter.
type verdict uint8

const (
	passed verdict = iota
	framed         // passed, in a STUN request
	wrongInterface
	notForUs
	ownSource
	badSource
	fragment
	options
	extension
	malformed
	unframed
	verdicts // their number
)

// isCandidate reports whether the packet is passed on.
func (v verdict) isCandidate() bool { return v <= framed }
