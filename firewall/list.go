package firewall

import (
	"slices"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
)

// atOnce is how many grants are looked at under one hold of the lock, so that listing many delays no new one.
const atOnce = 512

// Grants returns the grants that are live at now, sorted by client, service and address. A grant of many port ranges
// may come in several parts. Callers must not modify their Ports.
func (f *Firewall) Grants(now time.Time) []Grant {
	var gs []Grant
	f.walk(func(n int) { gs = make([]Grant, 0, n) }, func(h *ledger.Holding) {
		if h.Live(now) {
			gs = append(gs, viewOf(h))
		}
	})
	return f.withTaken(sorted(gs))
}

// sorted returns the grants in order. It sorts pointers: a grant is as large as twenty of them.
func sorted(gs []Grant) []Grant {
	order := make([]*Grant, len(gs))
	for i := range gs {
		order[i] = &gs[i]
	}
	slices.SortFunc(order, (*Grant).compare)
	list := make([]Grant, len(gs))
	for i, g := range order {
		list[i] = *g
	}
	return list
}

// walk calls start with the number of holdings, and then visit with each that is still held. It holds the lock during
// each call, but lets go of it in between: what is granted meanwhile may be missed. It starts again if a new
// configuration replaces the book.
func (f *Firewall) walk(start func(n int), visit func(h *ledger.Holding)) {
	for again := true; again; {
		book, all := f.snapshot()
		start(len(all))
		again = false
		for part := range slices.Chunk(all, atOnce) {
			if again = !f.visit(book, part, visit); again {
				break
			}
		}
	}
}

func (f *Firewall) snapshot() (*ledger.Book, []*ledger.Holding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held == nil {
		return nil, nil
	}
	return f.held, f.held.Snapshot()
}

// visit visits some holdings of a book, and reports whether that is still the one that counts.
func (f *Firewall) visit(book *ledger.Book, part []*ledger.Holding, visit func(h *ledger.Holding)) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held != book {
		return false
	}
	for _, h := range part {
		if !h.Gone() {
			visit(h)
		}
	}
	return true
}

// Count returns how many grants are live at now. The parts of a grant count once, as [Grant.Continues] tells. It copies
// and sorts only those.
func (f *Firewall) Count(now time.Time) int {
	var first map[owner]*ledger.Holding
	parts := make(map[owner][]Grant) // of owners with more than one holding
	start := func(n int) { first = make(map[owner]*ledger.Holding, n); clear(parts) }
	f.walk(start, func(h *ledger.Holding) {
		o := ownerOf(h)
		switch {
		case !h.Live(now):
		case first[o] == nil:
			first[o] = h
		case parts[o] == nil:
			parts[o] = []Grant{viewOf(first[o]), viewOf(h)}
		default:
			parts[o] = append(parts[o], viewOf(h))
		}
	})
	n := len(first)
	for _, gs := range parts {
		slices.SortFunc(gs, compareGrants)
		for i, g := range gs[1:] {
			if !g.Continues(gs[i]) {
				n++
			}
		}
	}
	return n
}

// taken returns the elements that have admitted their one flow.
func (f *Firewall) taken() ([]guard.Element, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.cfg.Once) == 0 {
		return nil, nil
	}
	return f.backend.Taken()
}
