package capture

// A verdict is the result for a packet that came through the kernel filter.
type verdict uint8

const (
	passed verdict = iota
	wrongInterface
	notForUs
	ownSource
	badSource
	fragment
	options
	extension
	malformed
	verdicts // their number
)
