package cli

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgress: an answer that comes at once shows no progress; for a slower one the line counts seconds, and is
// removed.
func TestProgress(t *testing.T) {
	for after, want := range map[time.Duration]string{
		300 * time.Millisecond:  "",
		500 * time.Millisecond:  "\r\x1b[Kwaiting … 0s\r\x1b[K",
		2500 * time.Millisecond: "\r\x1b[Kwaiting … 0s\r\x1b[Kwaiting … 1s\r\x1b[Kwaiting … 2s\r\x1b[K",
	} {
		synctest.Test(t, func(t *testing.T) {
			var screen bytes.Buffer
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				progress(&screen, "waiting", stop)
			}()
			<-time.After(after)
			close(stop)
			<-stopped
			if screen.String() != want {
				t.Errorf("after %v: got %q, want %q", after, screen.String(), want)
			}
		})
	}
}
