package enrol

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"sallyport/keys/service"
)

const (
	day        = 24 * time.Hour
	maxOverlap = 400 * day // a longer one defeats the rotation
)

// Overlap is how long a replaced key stays valid: in days, or as a duration in the syntax of the files.
type Overlap time.Duration

// String formats whole days as days.
func (f *Overlap) String() string {
	d := time.Duration(*f)
	switch {
	case d == 0:
		return "0"
	case d%day == 0:
		return strconv.Itoa(int(d/day)) + "d"
	}
	return service.FormatDuration(d)
}

// Set parses "0", "7d" or "36h".
func (f *Overlap) Set(s string) error {
	if s == "0" {
		*f = 0
		return nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n == 0 || time.Duration(n)*day > maxOverlap {
			return fmt.Errorf("1d to %dd, a shorter time such as 36h, or 0", maxOverlap/day)
		}
		*f = Overlap(time.Duration(n) * day)
		return nil
	}
	d, err := service.ParseDuration(s)
	if err != nil {
		return fmt.Errorf(`%w; days are written "7d"`, err)
	}
	*f = Overlap(d)
	return nil
}

// Type returns the value's name in the help text.
func (f *Overlap) Type() string { return "DURATION" }

// End returns when the replaced key ends: in whole seconds, and not earlier than requested.
func (f *Overlap) End(now time.Time) time.Time {
	end := now.UTC().Truncate(time.Second)
	if *f == 0 {
		return end
	}
	return end.Add(time.Duration(*f) + time.Second)
}
