package action

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestThousand: of a thousand grants at once, some are refused because too many wait. All that were given begin and end
// once.
func TestThousand(t *testing.T) {
	t.Parallel()
	d := newDoor(t, "log begin", "")
	var given []Grant
	busy := 0
	for i := range 1000 {
		g := grantTo(fmt.Sprint("client-", i), "a")
		switch err := d.give(g); {
		case errors.Is(err, ErrBusy):
			busy++
		case err != nil:
			t.Fatal(err)
		default:
			given = append(given, g)
		}
	}
	if busy == 0 || len(given) < mostBegins {
		t.Errorf("%d refused, %d given", busy, len(given))
	}
	lab.Eventually(t, "the begin of each", func() bool { return len(d.log()) == len(given) })
	d.quiet()
	d.take(given...)
	d.book.Left()
	lab.Eventually(t, "the end of each", func() bool { return d.book.Status().Live == 0 })
	if lines := d.log(); len(lines) != len(given) {
		t.Errorf("%d programs of %d grants", len(lines), len(given))
	}
}

// TestCrashes: whatever is killed at whatever moment, a grant's first program begins at most twice, its last at least
// once after the next start, and nothing runs longer than it may.
func TestCrashes(t *testing.T) {
	t.Parallel()
	d := newDoor(t, "log begin; sleep 0.02", "log end")
	for i := range 30 {
		g := grantTo(fmt.Sprint("client-", i), "a")
		lab.Must(t, d.give(g))
		time.Sleep(rand.N(30 * time.Millisecond)) // the moment
		switch i % 3 {
		case 0:
			lab.Must(t, syscall.Kill(d.book.runner.PID, syscall.SIGKILL))
		case 1:
			for _, pid := range childrenOf(d.book.runner.PID) {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			}
		}
		if i%2 == 0 {
			d.take(g)
			d.book.Left()
		}
		d.open()
		d.take(g)
		d.book.Left()
		lab.Eventually(t, "its end", func() bool { return d.book.Status().Live == 0 })
	}
	times := make(map[string]int)
	for _, line := range d.log() {
		fields := strings.Fields(line)
		times[fields[0]+" "+fields[1]]++
	}
	for i := range 30 {
		if n := times[fmt.Sprint("begin client-", i)]; n > 2 {
			t.Errorf("client-%d began %d times", i, n)
		}
		if times[fmt.Sprint("end client-", i)] == 0 {
			t.Errorf("client-%d never ended", i)
		}
	}
	lab.Eventually(t, "the end of all programs", func() bool { return len(running(d.dir)) == 0 })
}
