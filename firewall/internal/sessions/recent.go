package sessions

import "sallyport/firewall/internal/guard"

// Recent lists the flows of a kind that were answered, also those that have ended a moment ago, which connection
// tracking still knows.
func (s *Sessions) Recent(kind func(guard.Flow) bool) ([]guard.Flow, error) {
	flows, err := s.Flows(kind)
	if err != nil || !s.tracks {
		return flows, err
	}
	err = s.Entries(func(e *Entry) {
		if f := e.inbound(); e.answered && kind(f) {
			flows = append(flows, f)
		}
	})
	return flows, err
}
