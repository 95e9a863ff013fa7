package lab

import (
	"testing"
	"time"
	"unsafe"
)

// SetClock returns at as it is after the wall clock was set by d. time.Time has its wall part in the first word, the
// seconds above 30 bits of nanoseconds.
func SetClock(t testing.TB, at time.Time, d time.Duration) time.Time {
	t.Helper()
	set := at
	*(*uint64)(unsafe.Pointer(&set)) += uint64(d/time.Second) << 30
	if set.Sub(at) != 0 || set.Round(0).Sub(at.Round(0)) != d {
		t.Fatalf("got %v, want %v by a clock that was set by %v", set, at, d)
	}
	return set
}
