// Package deadline orders what ends: what ends first is first.
package deadline

import "time"

// Item is something that ends.
type Item interface {
	Ends() time.Time
	Moved(to int) // it is at this index of the heap now
}

// Heap is a heap for container/heap with the item that ends first on top.
type Heap[T Item] []T

// Next returns when the first item ends; zero: there is none.
func (h Heap[T]) Next() time.Time {
	if len(h) == 0 {
		return time.Time{}
	}
	return h[0].Ends()
}

func (h Heap[T]) Len() int           { return len(h) }
func (h Heap[T]) Less(i, j int) bool { return h[i].Ends().Before(h[j].Ends()) }
func (h Heap[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].Moved(i)
	h[j].Moved(j)
}

// Push adds an item at the end: call heap.Push.
func (h *Heap[T]) Push(x any) {
	item := x.(T)
	item.Moved(len(*h))
	*h = append(*h, item)
}

// Pop removes the item at the end: call heap.Pop.
func (h *Heap[T]) Pop() any {
	last := len(*h) - 1
	item := (*h)[last]
	clear((*h)[last:]) // so that it can be freed
	*h = (*h)[:last]
	return item
}
