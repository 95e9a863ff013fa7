package office

import (
	"context"
	"maps"
	"slices"
	"time"

	"sallyport/spa/fleet"
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
	Taken   *Taken     `json:"taken,omitempty"` // nil: the gateway has not reported, or is retired
}

// What Taken.State says about a report.
const (
	Proved   = "proved"   // the gateway signed it
	Unproved = "unproved" // of an earlier publish, whose keys this office has not kept
	Unknown  = "unknown"  // of a publish that this office does not know
	Forged   = "forged"   // the gateway did not sign it
	Swapped  = "swapped"  // of another gateway or fleet
	Garbled  = "garbled"  // it is no report
)

// Taken says which bundle a gateway reports to have taken over.
type Taken struct {
	State  string     `json:"state"`
	Serial int64      `json:"serial,omitempty"`
	Since  *time.Time `json:"since,omitempty"`
	Behind bool       `json:"behind"` // it has not proved that it has the last bundle
}

// taken checks what was reported for a gateway. Newer is set if the destination has its bundle of a publish that this
// office does not know.
func (o *Office) taken(g *Gateway, text []byte, newer bool) *Taken {
	t, err := fleet.ParseTaken(text)
	if err != nil {
		return &Taken{State: Garbled, Behind: true}
	}
	if t.Fleet != o.Fleet || t.Gateway != g.Name {
		return &Taken{State: Swapped, Behind: true}
	}
	s := &Taken{State: Unproved, Serial: t.Serial, Since: &t.Since}
	of := func(p Proof) bool { return p.Serial == t.Serial }
	switch proofs := o.Published.Taken[g.Name]; {
	case slices.ContainsFunc(proofs, func(p Proof) bool { return of(p) && t.By(p.Key) }):
		s.State = Proved
	case newer || t.Serial > o.newest():
		s.State = Unknown
	case slices.ContainsFunc(proofs, of):
		s.State = Forged
	}
	s.Behind = s.State != Proved || s.Serial < o.Published.Serial
	return s
}

// newest returns the highest serial of this office.
func (o *Office) newest() int64 {
	serial := o.Published.Serial
	for _, begun := range o.Published.Unfinished {
		serial = max(serial, begun.Serial)
	}
	return serial
}

// States returns the state of each gateway's bundle in a destination, and of bundles of other gateways there.
func (o *Office) States(ctx context.Context, d Destination, now time.Time, maxAge time.Duration) ([]State, error) {
	found, err := o.found(ctx, d, nil)
	if err != nil {
		return nil, err
	}
	reported, err := d.Taken(ctx)
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
		if text, there := reported[g.Name]; there && s.State != Retired {
			s.Taken = o.taken(g, text, s.State == Ahead)
		}
		list = append(list, s)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		list = append(list, State{Gateway: name, State: Foreign, Problem: found[name].Problem})
	}
	return list, nil
}
