package guard

import "sallyport/keys/service"

// Turn is what a change of a lease means for the one flow of its grant, at a port of Spec.Once.
type Turn uint8

const (
	SameTurn Turn = iota // it has come or not, as before
	NewTurn              // it may come from now on
	NoMore               // a grant for the same element has ended: only one flow may still come
)

// AdmitsOne reports whether the lease's grant admits one flow. Networks get nothing at ports of Once.
func (c *Spec) AdmitsOne(l Lease) bool {
	_, wide := l.Span()
	return !wide && service.Covers(c.Once, l.Proto, l.Port)
}
