package audit

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// Queue passes lines on to a writer. A reader that stalls must not block the daemon: lines that do not fit are
// dropped, counted, and reported once there is room.
type Queue struct {
	w     io.Writer
	lines chan []byte
	lost  atomic.Uint64
	done  chan struct{}
}

// How many lines wait, and for how long Close waits for them, in how many steps.
const (
	queueLen   = 1024
	queueWait  = time.Second
	queueLooks = 10
)

// NewQueue returns a queue in front of w. Its caller must close it.
func NewQueue(w io.Writer) *Queue {
	q := &Queue{w: w, lines: make(chan []byte, queueLen), done: make(chan struct{})}
	go q.pass()
	return q
}

func (q *Queue) pass() {
	defer close(q.done)
	for line := range q.lines {
		q.w.Write(line) // an error cannot be reported anywhere
		if lost := q.lost.Swap(0); lost > 0 {
			fmt.Fprintf(q.w, "level=WARN msg=\"messages lost: the reader stalled\" lines=%d\n", lost)
		}
	}
}

// Write queues one line. It never fails.
func (q *Queue) Write(line []byte) (int, error) {
	select {
	case q.lines <- append([]byte(nil), line...):
	default:
		q.lost.Add(1)
	}
	return len(line), nil
}

// Close waits a moment for queued lines. Callers must not write afterwards.
func (q *Queue) Close() error {
	close(q.lines)
	for range queueLooks { // a process that was itself stopped in between missed one of them, not all
		select {
		case <-q.done:
			return nil
		case <-time.After(queueWait / queueLooks):
		}
	}
	return nil
}
