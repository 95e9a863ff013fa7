package office

import (
	"context"
	"maps"
	"slices"
	"time"
)

// What State.State says about a gateway's bundle.
const (
	Current = "current"
	Behind  = "behind"  // a later publish did not reach it
	Ahead   = "ahead"   // of a publish that this office does not know
	Stale   = "stale"   // of the last publish, which is too long ago
	Missing = "missing" // there is none
	Damaged = "damaged" // it is no bundle of this office
	Retired = "retired" // the gateway is retired
	Foreign = "foreign" // of a gateway that the office does not know
)

// A State says which bundle a destination has for a gateway.
type State struct {
	Gateway string     `json:"gateway"`
	Site    string     `json:"site,omitempty"`
	State   string     `json:"state"`
	Serial  int64      `json:"serial,omitempty"`
	Issued  *time.Time `json:"issued,omitempty"`
	Problem string     `json:"problem,omitempty"`
}

// States returns the state of each gateway's bundle in a destination, and of bundles of other gateways there.
func (o *Office) States(ctx context.Context, d Destination, now time.Time, maxAge time.Duration) ([]State, error) {
	found, err := o.found(ctx, d, nil)
	if err != nil {
		return nil, err
	}
	var list []State
	for _, g := range o.Gateways {
		f, there := found[g.Name]
		delete(found, g.Name)
		s := State{Gateway: g.Name, Site: g.Site.Name, Problem: f.Problem}
		if f.Head != nil {
			s.Serial, s.Issued = f.Head.Serial, &f.Head.Issued
		}
		switch {
		case !g.Retired.IsZero():
			s.State = Retired
		case !there:
			s.State = Missing
		case f.Head == nil:
			s.State = Damaged
		case s.Serial < o.Published.Serial:
			s.State = Behind
		case !o.knows(f.Head):
			s.State = Ahead
		case now.Sub(*s.Issued) > maxAge:
			s.State = Stale
		default:
			s.State = Current
		}
		list = append(list, s)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		list = append(list, State{Gateway: name, State: Foreign, Problem: found[name].Problem})
	}
	return list, nil
}
