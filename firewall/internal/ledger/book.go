package ledger

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/keys/deadline"
	"sallyport/keys/service"
)

// Book holds the live grants in memory: the live records of the ledger and, for each element, the holdings that keep
// it open. A holding that has ended stays until the kernel has ended it too. No operation on one grant walks over
// others, except that ending a grant early looks at those of the same element.
type Book struct {
	byKey    map[Key]*Holding
	byClient map[string]map[*Holding]bool
	elements map[guard.Element]*tenancy
	spans    map[guard.Span]int // how many elements are for networks of that width
	due      deadline.Heap[*Holding]
	ended    func(slot int) // called with each slot that becomes free
}

// Key identifies a grant: two grants with the same key are the same.
type Key struct {
	client, service string
	source, to      netip.Addr
	bits            uint8
	lent            bool
	link            uint32
	ports           string
	once            bool
}

// tenancy is the holdings of one element, and when the last of them ends. Ended holdings stay in the list until they
// make up half of it, so that each costs the same.
type tenancy struct {
	until   time.Time
	holders []*Holding
	ended   int
}

// NewBook returns an empty book. It calls ended with each slot that becomes free.
func NewBook(ended func(slot int)) *Book {
	return &Book{
		byKey:    make(map[Key]*Holding),
		byClient: make(map[string]map[*Holding]bool),
		elements: make(map[guard.Element]*tenancy),
		spans:    make(map[guard.Span]int),
		ended:    ended,
	}
}

// Key returns the holding's key.
func (h *Holding) Key() Key {
	b := make([]byte, 0, 5*MaxRanges)
	for _, p := range h.Ports {
		b = append(b, byte(p.Proto))
		b = binary.BigEndian.AppendUint16(b, p.Low)
		b = binary.BigEndian.AppendUint16(b, p.High)
	}
	return Key{h.Client, h.Service, h.Source, h.To, h.Bits, h.Lent, h.Link, string(b), h.Once}
}

// Each calls f with every element of the holding, only once where ranges overlap.
func (h *Holding) Each(f func(guard.Element)) {
	for i, p := range h.Ports {
		for port := int(p.Low); port <= int(p.High); port++ {
			if !service.Covers(h.Ports[:i], p.Proto, uint16(port)) {
				f(guard.Element{Source: h.Source, Bits: h.Bits, Link: h.Link, To: h.To, Proto: p.Proto, Port: uint16(port)})
			}
		}
	}
}

// Leads reports whether the holding's port leads elsewhere.
func (h *Holding) Leads() bool { return h.Led != netip.AddrPort{} }

// Size returns the number of ports in the ranges; overlaps count twice.
func (h *Holding) Size() int {
	n := 0
	for _, p := range h.Ports {
		n += int(p.High) - int(p.Low) + 1
	}
	return n
}

// Check returns an error for a holding that may not be in the ledger at now.
func (h *Holding) Check(now time.Time) error {
	source := guard.OnLink(h.Source, h.Link)
	if guard.LinkLocal(h.Source) {
		if err := h.checkLink(); err != nil {
			return err
		}
	}
	switch {
	case !h.Source.IsValid():
		return errors.New("a grant needs a source address")
	case h.To.IsValid() && h.To.IsUnspecified():
		return errors.New("a grant needs destination addresses")
	case h.To.IsValid() && h.To.Is4() != h.Source.Is4():
		return fmt.Errorf("%v cannot reach %v: a grant is for addresses of one family", source, h.To)
	case guard.Remaining(h.Until, now) <= 0:
		return fmt.Errorf("a grant until %v has ended already", h.Until)
	case len(h.Client) >= NameSize || len(h.Service) >= NameSize:
		return fmt.Errorf("names in the ledger have at most %d bytes", NameSize-1)
	case len(h.Ports) == 0 && h.To.IsValid():
		return errors.New("a grant without ports has no destination")
	case h.Leads() && (h.To.IsValid() || len(h.Ports) != 1 || h.Ports[0].Low != h.Ports[0].High || h.Led.Port() == 0):
		return errors.New("only a single port of this host leads elsewhere")
	}
	for _, p := range h.Ports {
		if err := guard.CheckPorts(p); err != nil {
			return err
		}
	}
	return h.checkNetwork()
}

// checkNetwork checks the rules for what a client may let in besides its own address.
func (h *Holding) checkNetwork() error {
	if h.Bits == 0 && !h.Lent {
		return nil
	}
	if h.Link != 0 || int(h.Bits) >= h.Source.BitLen() {
		return errors.New("a grant cannot let in such a network")
	}
	return service.CheckNetwork(guard.Prefix(h.Source, h.Bits))
}

// checkLink checks the rules for link-local sources.
func (h *Holding) checkLink() error {
	b := h.Source.As16()
	switch {
	case h.Source.Is4():
		return fmt.Errorf("no grant for %v: an IPv4 link-local address may be a different machine on each link", h.Source)
	case h.Link == 0:
		return fmt.Errorf("a grant for %v needs the index of an interface as its zone", h.Source)
	case h.To.IsValid():
		return fmt.Errorf("a grant for %v reaches only this host, not %v", guard.OnLink(h.Source, h.Link), h.To)
	case [6]byte(b[2:8]) != [6]byte{}:
		return fmt.Errorf("%v is not in fe80::/64, as link-local addresses are", guard.OnLink(h.Source, h.Link))
	}
	return nil
}

// Ends returns when the holding ends.
func (h *Holding) Ends() time.Time { return h.Until }

// Moved records the holding's place in the heap of ends.
func (h *Holding) Moved(to int) { h.due = to }

// Gone reports whether the holding was removed from its book.
func (h *Holding) Gone() bool { return h.Slot < 0 }

// Live reports whether the holding has not ended at now.
func (h *Holding) Live(now time.Time) bool { return guard.Remaining(h.Until, now) > 0 }

// Add adds a holding that is not in the book yet.
func (hs *Book) Add(h *Holding) {
	hs.byKey[h.Key()] = h
	if hs.byClient[h.Client] == nil {
		hs.byClient[h.Client] = make(map[*Holding]bool)
	}
	hs.byClient[h.Client][h] = true
	heap.Push(&hs.due, h)
	h.Each(func(e guard.Element) {
		t := hs.elements[e]
		if t == nil {
			t = &tenancy{}
			hs.elements[e] = t
			hs.count(e, 1)
		}
		t.holders = append(t.holders, h)
		t.prolong(h.Until)
	})
}

// Len returns how many holdings there are.
func (hs *Book) Len() int { return len(hs.byKey) }

// Find returns the holding with this key, or nil.
func (hs *Book) Find(key Key) *Holding { return hs.byKey[key] }

// EndOf returns when the last holding of the element ends; zero: there is none.
func (hs *Book) EndOf(e guard.Element) time.Time {
	if t := hs.elements[e]; t != nil {
		return t.until
	}
	return time.Time{}
}

// Covering returns when the last holding ends whose address or network has the element's address; zero: there is none.
func (hs *Book) Covering(e guard.Element) time.Time {
	until := hs.EndOf(e)
	for s := range hs.spans {
		if wide, ok := e.Widened(s); ok {
			until = Later(until, hs.EndOf(wide))
		}
	}
	return until
}

// Spans returns the widths of the networks that holdings let in.
func (hs *Book) Spans() []guard.Span {
	return slices.SortedFunc(maps.Keys(hs.spans), guard.CompareSpans)
}

func (hs *Book) count(e guard.Element, n int) {
	s, ok := e.Span()
	if !ok {
		return
	}
	if hs.spans[s] += n; hs.spans[s] == 0 {
		delete(hs.spans, s)
	}
}

// Besides returns when the last other holding of the element ends; zero: there is none.
func (hs *Book) Besides(e guard.Element, h *Holding) time.Time {
	if t := hs.elements[e]; t != nil {
		return t.without(map[*Holding]bool{h: true})
	}
	return time.Time{}
}

// All yields all holdings.
func (hs *Book) All() iter.Seq[*Holding] { return maps.Values(hs.byKey) }

// Snapshot returns all holdings, in no order. It looks at none of them.
func (hs *Book) Snapshot() []*Holding { return slices.Clone(hs.due) }

// Of yields the holdings of one client, without looking at others.
func (hs *Book) Of(client string) iter.Seq[*Holding] { return maps.Keys(hs.byClient[client]) }

// prolong gives a holding in the book a later end.
func (hs *Book) prolong(h *Holding, until time.Time) {
	h.Until = until
	heap.Fix(&hs.due, h.due)
	h.Each(func(e guard.Element) { hs.elements[e].prolong(until) })
}

// Change is what a grant changes about one holding.
type Change struct {
	*Holding
	Until, Asked time.Time
	Fresh        bool // the holding is new, and its slot too
}

// After returns the holding as it is after the change.
func (c Change) After() Holding {
	h := *c.Holding
	h.Until, h.Asked = c.Until, c.Asked
	return h
}

// Apply makes the changes. Each must be for a different holding.
func (hs *Book) Apply(changes []Change) {
	for _, c := range changes {
		c.Holding.Asked = c.Asked
		if c.Fresh {
			c.Holding.Until = c.Until
			hs.Add(c.Holding)
			continue
		}
		hs.prolong(c.Holding, c.Until)
	}
}

func (t *tenancy) prolong(until time.Time) {
	if until.After(t.until) {
		t.until = until
	}
}

// Next returns when the first holding ends; zero: there is none.
func (hs *Book) Next() time.Time { return hs.due.Next() }

// Over returns holdings that have ended at now: all, or enough to cover that many ports.
func (hs *Book) Over(now time.Time, ports int) []*Holding {
	var found []*Holding
	var look func(i int)
	look = func(i int) {
		if ports > 0 && i < len(hs.due) && !hs.due[i].Live(now) {
			found = append(found, hs.due[i])
			ports -= max(1, hs.due[i].Size())
			look(2*i + 1) // those below end later
			look(2*i + 2)
		}
	}
	look(0)
	return found
}

// Adjust shortens holdings that end earlier by the wall clock than by the monotonic clock, and returns the new end of
// each element.
func (hs *Book) Adjust(now time.Time) map[guard.Element]time.Time {
	ends := make(map[guard.Element]time.Time)
	for _, h := range hs.due {
		h.Until = now.Add(guard.Remaining(h.Until, now))
		h.Each(func(e guard.Element) { ends[e] = time.Time{} })
	}
	heap.Init(&hs.due)
	for e := range ends {
		ends[e] = hs.elements[e].without(nil)
	}
	hs.Shorten(ends)
	return ends
}

// Remove removes a holding. It does not recompute the ends of its elements: see Shorten.
func (hs *Book) Remove(h *Holding) {
	heap.Remove(&hs.due, h.due)
	delete(hs.byKey, h.Key())
	delete(hs.byClient[h.Client], h)
	if len(hs.byClient[h.Client]) == 0 {
		delete(hs.byClient, h.Client)
	}
	hs.ended(h.Slot)
	h.Slot = -1
	h.Each(hs.vacate)
}

func (hs *Book) vacate(e guard.Element) {
	t := hs.elements[e]
	t.ended++
	if t.ended == len(t.holders) {
		delete(hs.elements, e)
		hs.count(e, -1)
		return
	}
	if 2*t.ended > len(t.holders) {
		t.holders = slices.DeleteFunc(t.holders, func(h *Holding) bool { return h.Slot < 0 })
		t.ended = 0
	}
}

// EndsWithout returns the end of each element of the leaving holdings once they have left; zero: no holding remains.
func (hs *Book) EndsWithout(leaving []*Holding) map[guard.Element]time.Time {
	gone := make(map[*Holding]bool, len(leaving))
	for _, h := range leaving {
		gone[h] = true
	}
	ends := make(map[guard.Element]time.Time)
	for _, h := range leaving {
		h.Each(func(e guard.Element) {
			if _, done := ends[e]; !done {
				ends[e] = hs.elements[e].without(gone)
			}
		})
	}
	return ends
}

func (t *tenancy) without(gone map[*Holding]bool) time.Time {
	var until time.Time
	for _, h := range t.holders {
		if h.Slot >= 0 && !gone[h] {
			until = Later(until, h.Until)
		}
	}
	return until
}

// Shorten sets new ends for elements that holdings have left.
func (hs *Book) Shorten(ends map[guard.Element]time.Time) {
	for e, end := range ends {
		if t := hs.elements[e]; t != nil {
			t.until = end
		}
	}
}

// Leases returns all elements and when they end.
func (hs *Book) Leases() []guard.Lease {
	ls := make([]guard.Lease, 0, len(hs.elements))
	for e, t := range hs.elements {
		ls = append(ls, guard.Lease{Element: e, Until: t.until})
	}
	return ls
}

// Later returns the later of two times.
func Later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
