package capture

// A verdict says what a packet that came through the kernel filter is.
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
	verdicts // how many there are
)
