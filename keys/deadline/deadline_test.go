package deadline

import (
	"container/heap"
	"math/rand/v2"
	"testing"
	"time"
)

type task struct {
	at    time.Time
	index int
}

func (t *task) Ends() time.Time { return t.at }
func (t *task) Moved(to int)    { t.index = to }

// TestHeap: whatever is added, prolonged and removed, each item knows its place, and the first to end comes first.
func TestHeap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var h Heap[*task]
	for range 2000 {
		at := start.Add(time.Duration(random.IntN(1000)) * time.Second)
		switch {
		case len(h) == 0 || random.IntN(2) == 0:
			heap.Push(&h, &task{at: at})
		case random.IntN(2) == 0:
			i := random.IntN(len(h))
			h[i].at = at
			heap.Fix(&h, i)
		default:
			heap.Remove(&h, random.IntN(len(h)))
		}
		for i, item := range h {
			if item.index != i || item.at.Before(h.Next()) {
				t.Fatalf("at %d: %+v, and the first ends at %v", i, item, h.Next())
			}
		}
	}
	for last := start; len(h) > 0; {
		item := heap.Pop(&h).(*task)
		if item.at.Before(last) {
			t.Fatalf("%v comes after %v", item.at, last)
		}
		last = item.at
	}
	if !h.Next().IsZero() {
		t.Errorf("an empty heap ends at %v", h.Next())
	}
}
