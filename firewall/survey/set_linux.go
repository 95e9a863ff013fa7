package survey

import (
	"bytes"
	"slices"

	"golang.org/x/sys/unix"
)

// setReader reads a set from the kernel only when a rule needs it: most sets are about sources, need not be read, and
// may be large.
type setReader interface {
	set(s Set) (*elements, error)
	shape(s Set) *elements // without elements
}

// elements are the contents of a set or map.
type elements struct {
	interval bool
	fields   []int // lengths of the parts of a key; with one part it is not concatenated
	list     []element
}

type element struct {
	key, last []byte // last: the end of a range of concatenated keys
	end       bool   // a range ends before this key
	rest      bool   // matches keys that no other element does
	data      []byte
	verdict   verdict
	decides   bool // verdict is set
}

func (m *machine) lookup(a attributes) {
	const inverted = 1 // NFT_LOOKUP_F_INV
	name := Set{Family: m.table.family, Table: m.table.name, Name: a.str(unix.NFTA_LOOKUP_SET)}
	key := m.register(a.u32(unix.NFTA_LOOKUP_SREG))
	isMap := a.has(unix.NFTA_LOOKUP_DREG)
	if slices.Contains(m.p.packet.Members, name) && !isMap {
		m.want(certain(a.u32(unix.NFTA_LOOKUP_FLAGS)&inverted == 0), false)
		return
	}
	es, err := m.p.rules.sets.set(name)
	if err != nil {
		m.unclearMap(isMap)
		return
	}
	key = key[:min(es.size(), len(key))]
	if !isMap {
		source := ofSource(key)
		found, _ := es.find(key)
		if a.u32(unix.NFTA_LOOKUP_FLAGS)&inverted != 0 {
			found = found.not()
		}
		m.want(found, source)
		return
	}
	m.lookupMap(es, key, a.u32(unix.NFTA_LOOKUP_DREG))
}

// unclearMap is a lookup in a set that could not be read.
func (m *machine) unclearMap(isMap bool) {
	m.doubt(nil)
	if isMap {
		m.loadUnknown(nil)
		m.verdicts = []verdict{{action: anything}}
	}
}

// lookupMap loads the map's value for the key, or decides by it.
func (m *machine) lookupMap(es *elements, key []cell, destination uint32) {
	found, e := es.find(key)
	if ofSource(key) && m.p.anybody {
		found = maybe
	}
	m.want(found, ofSource(key))
	if found == no && ofSource(key) && destination == unix.NFT_REG_VERDICT {
		m.verdicts = []verdict{{action: accepts}} // for other senders, whatever the verdict is
	}
	switch {
	case found == no:
	case destination != unix.NFT_REG_VERDICT && found == yes:
		m.store(destination, bytesOf(e.data...))
	case destination != unix.NFT_REG_VERDICT:
		m.store(destination, unknowns(16))
		m.choices, m.chosen = es.data(), destination
	case found == yes:
		m.decide(e.verdict)
	default:
		for _, e := range es.list {
			if e.decides {
				m.decide(e.verdict)
			}
		}
	}
}

// data returns all values of a map.
func (es *elements) data() (all [][]byte) {
	for _, e := range es.list {
		if len(e.data) > 0 {
			all = append(all, e.data)
		}
	}
	return all
}

// size returns the length of a key in registers.
func (es *elements) size() int {
	n := 0
	for _, f := range es.fields {
		n += (f + 3) &^ 3
	}
	if len(es.fields) == 1 {
		return es.fields[0]
	}
	return n
}

// find looks for a key. A key that contains the sender's address is in no set: no rule names an outsider.
func (es *elements) find(key []cell) (truth, element) {
	rest := slices.IndexFunc(es.list, func(e element) bool { return e.rest })
	found, at := es.findKey(key)
	if found == no && rest >= 0 {
		return yes, es.list[rest]
	}
	return found, at
}

func (es *elements) findKey(key []cell) (truth, element) {
	if ofSource(key) {
		return no, element{}
	}
	if es.interval && len(es.fields) == 1 {
		return es.findRange(key)
	}
	result, at := no, element{}
	for _, e := range es.list {
		t := e.matches(key, es.fields)
		if t == yes && !e.rest {
			return yes, e
		}
		if t > result && !e.rest {
			result, at = t, e
		}
	}
	return result, at
}

// matches compares a key with one element, part by part if that is a range.
func (e element) matches(key []cell, fields []int) truth {
	if len(e.last) == 0 {
		return equals(key, e.key)
	}
	result, from := yes, 0
	for _, size := range fields {
		to := from + size
		if to > len(key) || to > len(e.key) || to > len(e.last) {
			return maybe
		}
		result = result.and(within(key[from:to], e.key[from:to], e.last[from:to]))
		from += (size + 3) &^ 3
	}
	return result
}

// findRange looks in a list of points, some of which begin a range and the others end one.
func (es *elements) findRange(key []cell) (truth, element) {
	b, ok := concrete(key)
	if !ok {
		if len(es.list) == 0 {
			return no, element{}
		}
		return maybe, element{}
	}
	var at *element
	for i := range es.list {
		e := &es.list[i]
		if e.rest || bytes.Compare(e.key, b) > 0 {
			continue
		}
		if at == nil || bytes.Compare(e.key, at.key) > 0 || at.end && bytes.Equal(e.key, at.key) {
			at = e
		}
	}
	if at == nil || at.end {
		return no, element{}
	}
	return yes, *at
}

// dynset adds to a set, with the limits of each element.
func (m *machine) dynset(a attributes) {
	const inverted, expressions = 1, 10 // NFT_DYNSET_F_INV, NFTA_DYNSET_EXPRESSIONS
	if a.u32(unix.NFTA_DYNSET_FLAGS)&inverted != 0 {
		m.want(no, false)
		return
	}
	if a.has(unix.NFTA_DYNSET_EXPR) {
		m.within(parseExpression(a.raw(unix.NFTA_DYNSET_EXPR)))
	}
	for _, e := range list(a.raw(expressions)) {
		m.within(parseExpression(e.Data))
	}
}

// within runs an expression of an element; only limits can match or not.
func (m *machine) within(e expression) {
	switch e.name {
	case "limit":
		m.limit(e.attrs)
	case "quota":
		m.quota(e.attrs)
	case "connlimit":
		m.connlimit(e.attrs)
	}
}
