package firewall

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"sallyport/firewall/internal/guard"
)

// holdings is who holds what, in memory: the live records of the ledger, and for each
// element the holdings that it follows from. One that has ended stays until the kernel has
// ended it too: see endOver. No operation on one grant walks over others,
// except that ending a grant before its time looks at those of the same element.
type holdings struct {
	byKey    map[holdingKey]*holding
	byClient map[string]map[*holding]bool
	elements map[guard.Element]*tenancy
	due      dueHeap
	ended    func(slot int) // told of each slot that is free again
}

// holdingKey is what makes a grant the same grant.
type holdingKey struct {
	client, service string
	source, to      netip.Addr
	link            uint32
	ports           string
}

// tenancy is the holdings of one element, and when the last of them ends. Holdings that
// have ended stay in the list until they are half of it, so that each costs the same.
type tenancy struct {
	until   time.Time
	holders []*holding
	ended   int
}

func newHoldings(ended func(slot int)) *holdings {
	return &holdings{
		byKey:    make(map[holdingKey]*holding),
		byClient: make(map[string]map[*holding]bool),
		elements: make(map[guard.Element]*tenancy),
		ended:    ended,
	}
}

func (h *holding) key() holdingKey {
	b := make([]byte, 0, 5*maxRanges)
	for _, p := range h.ports {
		b = append(b, byte(p.Proto))
		b = binary.BigEndian.AppendUint16(b, p.Low)
		b = binary.BigEndian.AppendUint16(b, p.High)
	}
	return holdingKey{h.client, h.service, h.source, h.to, h.link, string(b)}
}

// each calls f with every element of the holding, once where ranges overlap.
func (h *holding) each(f func(guard.Element)) {
	for i, p := range h.ports {
		for port := int(p.Low); port <= int(p.High); port++ {
			if !guard.Contains(h.ports[:i], p.Proto, uint16(port)) {
				f(guard.Element{Source: h.source, Link: h.link, To: h.to, Proto: p.Proto, Port: uint16(port)})
			}
		}
	}
}

// size is how many ports the ranges have, some perhaps twice.
func (h *holding) size() int {
	n := 0
	for _, p := range h.ports {
		n += int(p.High) - int(p.Low) + 1
	}
	return n
}

func (h *holding) grant() Grant {
	g := Grant{Client: h.client, Service: h.service, Source: guard.OnLink(h.source, h.link),
		Ports: slices.Clone(h.ports), Until: h.until}
	if h.to.IsValid() {
		g.To = []netip.Addr{h.to}
	}
	return g
}

func (h *holding) live(now time.Time) bool { return guard.Left(h.until, now) > 0 }

// matches reports whether m's address and services are the holding's; its client is looked
// for by matching.
func (m *Match) matches(h *holding) bool {
	return (!m.Source.IsValid() || guard.Normal(m.Source) == h.source &&
		(m.Source.Zone() == "" || guard.LinkOf(m.Source) == h.link)) &&
		(m.Services == nil || slices.Contains(m.Services, h.service))
}

// add adds a holding that is not there yet.
func (hs *holdings) add(h *holding) {
	hs.byKey[h.key()] = h
	if hs.byClient[h.client] == nil {
		hs.byClient[h.client] = make(map[*holding]bool)
	}
	hs.byClient[h.client][h] = true
	heap.Push(&hs.due, h)
	h.each(func(e guard.Element) {
		t := hs.elements[e]
		if t == nil {
			t = &tenancy{}
			hs.elements[e] = t
		}
		t.holders = append(t.holders, h)
		t.prolong(h.until)
	})
}

// prolong gives a holding that is there a later end.
func (hs *holdings) prolong(h *holding, until time.Time) {
	h.until = until
	heap.Fix(&hs.due, h.due)
	h.each(func(e guard.Element) { hs.elements[e].prolong(until) })
}

// apply makes the changes, each of which is another holding's.
func (hs *holdings) apply(changes []change) {
	for _, c := range changes {
		if c.fresh {
			c.holding.until = c.until
			hs.add(c.holding)
			continue
		}
		hs.prolong(c.holding, c.until)
	}
}

func (t *tenancy) prolong(until time.Time) {
	if until.After(t.until) {
		t.until = until
	}
}

// next returns when the first holding ends; zero where there is none.
func (hs *holdings) next() time.Time {
	if len(hs.due) == 0 {
		return time.Time{}
	}
	return hs.due[0].until
}

// over returns holdings that have ended at now: all, or as many as have that many ports.
func (hs *holdings) over(now time.Time, ports int) []*holding {
	var found []*holding
	var look func(i int)
	look = func(i int) {
		if ports > 0 && i < len(hs.due) && !hs.due[i].live(now) {
			found = append(found, hs.due[i])
			ports -= hs.due[i].size()
			look(2*i + 1) // those below end later
			look(2*i + 2)
		}
	}
	look(0)
	return found
}

// adjust shortens holdings whose end has come nearer by the wall clock than by the monotonic
// one, and returns when each element ends now.
func (hs *holdings) adjust(now time.Time) map[guard.Element]time.Time {
	ends := make(map[guard.Element]time.Time)
	for _, h := range hs.due {
		h.until = now.Add(guard.Left(h.until, now))
		h.each(func(e guard.Element) { ends[e] = time.Time{} })
	}
	heap.Init(&hs.due)
	for e := range ends {
		ends[e] = hs.elements[e].without(nil)
	}
	hs.shorten(ends)
	return ends
}

// remove forgets a holding. The ends of its elements are not recomputed: see shorten.
func (hs *holdings) remove(h *holding) {
	heap.Remove(&hs.due, h.due)
	delete(hs.byKey, h.key())
	delete(hs.byClient[h.client], h)
	if len(hs.byClient[h.client]) == 0 {
		delete(hs.byClient, h.client)
	}
	hs.ended(h.slot)
	h.slot = -1
	h.each(hs.vacate)
}

func (hs *holdings) vacate(e guard.Element) {
	t := hs.elements[e]
	t.ended++
	if t.ended == len(t.holders) {
		delete(hs.elements, e)
		return
	}
	if 2*t.ended > len(t.holders) {
		t.holders = slices.DeleteFunc(t.holders, func(h *holding) bool { return h.slot < 0 })
		t.ended = 0
	}
}

// endsWithout returns when each element of those leaving ends once they have left; zero
// where nobody is left.
func (hs *holdings) endsWithout(leaving []*holding) map[guard.Element]time.Time {
	gone := make(map[*holding]bool, len(leaving))
	for _, h := range leaving {
		gone[h] = true
	}
	ends := make(map[guard.Element]time.Time)
	for _, h := range leaving {
		h.each(func(e guard.Element) {
			if _, done := ends[e]; !done {
				ends[e] = hs.elements[e].without(gone)
			}
		})
	}
	return ends
}

func (t *tenancy) without(gone map[*holding]bool) time.Time {
	var until time.Time
	for _, h := range t.holders {
		if h.slot >= 0 && !gone[h] {
			until = later(until, h.until)
		}
	}
	return until
}

// shorten sets the ends of elements that holdings have left.
func (hs *holdings) shorten(ends map[guard.Element]time.Time) {
	for e, end := range ends {
		if t := hs.elements[e]; t != nil {
			t.until = end
		}
	}
}

// leases returns all elements and when they end.
func (hs *holdings) leases() []guard.Lease {
	ls := make([]guard.Lease, 0, len(hs.elements))
	for e, t := range hs.elements {
		ls = append(ls, guard.Lease{Element: e, Until: t.until})
	}
	return ls
}

// matching looks at the grants of one client only if m names it.
func (hs *holdings) matching(m Match) []*holding {
	var found []*holding
	take := func(h *holding) {
		if m.matches(h) {
			found = append(found, h)
		}
	}
	if m.Client != "" {
		for h := range hs.byClient[m.Client] {
			take(h)
		}
		return found
	}
	for _, h := range hs.byKey {
		take(h)
	}
	return found
}

// grants returns those that live at now.
func (hs *holdings) grants(m Match, now time.Time) []Grant {
	var gs []Grant
	for _, h := range hs.matching(m) {
		if h.live(now) {
			gs = append(gs, h.grant())
		}
	}
	slices.SortFunc(gs, compareGrants)
	return gs
}

func compareGrants(a, b Grant) int {
	return cmp.Or(
		cmp.Compare(a.Client, b.Client),
		cmp.Compare(a.Service, b.Service),
		a.Source.Compare(b.Source),
		slices.CompareFunc(a.To, b.To, netip.Addr.Compare),
		slices.CompareFunc(a.Ports, b.Ports, guard.ComparePorts),
	)
}

// dueHeap has the holding that ends first on top.
type dueHeap []*holding

func (d dueHeap) Len() int           { return len(d) }
func (d dueHeap) Less(i, j int) bool { return d[i].until.Before(d[j].until) }
func (d dueHeap) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].due, d[j].due = i, j
}

func (d *dueHeap) Push(x any) {
	h := x.(*holding)
	h.due = len(*d)
	*d = append(*d, h)
}

func (d *dueHeap) Pop() any {
	old := *d
	last := len(old) - 1
	h := old[last]
	old[last] = nil
	*d = old[:last]
	return h
}
