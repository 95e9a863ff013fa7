package replay

// chunk is the number of elements that an arena grows by: growing copies nothing, so no Admit
// pays for the ones before it.
const chunk = 256

// arena is a list that grows without moving its elements. The zero value is empty.
type arena[T any] struct{ chunks []*[chunk]T }

// at returns element i, making room for it when there is none.
func (a *arena[T]) at(i int32) *T {
	for int(i/chunk) >= len(a.chunks) {
		a.chunks = append(a.chunks, new([chunk]T))
	}
	return &a.chunks[i/chunk][i%chunk]
}
