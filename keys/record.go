package keys

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// A record is a client as a Registry keeps it: 48 bytes and the key, instead of 256. What clients have in common is
// there once. A record never changes.
type record struct {
	name  string
	id    ID
	key   Key
	own   *own    // nil for most clients
	terms *Client // everything else; shared with clients that have the same
}

// own is what few clients have, and each has its own.
type own struct {
	previous         *Previous
	expires, revoked time.Time
}

// client returns the client. It does not allocate.
func (r *record) client() Client {
	c := *r.terms
	c.Name, c.ID, c.Key = r.name, r.id, r.key
	if r.own != nil {
		c.Previous, c.Expires, c.Revoked = r.own.previous, r.own.expires, r.own.revoked
	}
	return c
}

// whole returns the client of a record, or nil if there is none.
func (r *record) whole() *Client {
	if r == nil {
		return nil
	}
	c := r.client()
	return &c
}

func (r *record) revoked() bool { return r.own != nil && !r.own.revoked.IsZero() }

func (r *record) previous() *Previous {
	if r.own == nil {
		return nil
	}
	return r.own.previous
}

// ids is Client.IDs.
func (r *record) ids() []ID {
	if p := r.previous(); p != nil {
		return []ID{r.id, p.ID}
	}
	return []ID{r.id}
}

// same reports whether the clients are equal in everything.
func (r *record) same(other *record) bool {
	return r == other || r.name == other.name && r.id == other.id && r.key.Equal(other.key) &&
		reflect.DeepEqual(r.own, other.own) && (r.terms == other.terms || r.terms.Same(other.terms))
}

// A pool makes records, and finds the terms that they have in common. The zero pool is ready to use.
type pool struct {
	known map[string]*Client // by text
	last  *Client
}

// maxPool is how many terms a pool remembers. It forgets them all when there are more: terms that no client has any
// more must not fill the memory.
const maxPool = 1000

// record returns the record of a client.
func (p *pool) record(c *Client) *record {
	r := &record{name: c.Name, id: c.ID, key: c.Key}
	if c.Previous != nil || !c.Expires.IsZero() || !c.Revoked.IsZero() {
		r.own = &own{c.Previous, c.Expires, c.Revoked}
	}
	terms := *c
	terms.Name, terms.ID, terms.Key = "", 0, Key{}
	terms.Previous, terms.Expires, terms.Revoked = nil, time.Time{}, time.Time{}
	r.terms = p.shared(terms)
	return r
}

// shared returns terms that are equal to these, and the same for many clients.
func (p *pool) shared(terms Client) *Client {
	if p.last != nil && p.last.Same(&terms) {
		return p.last
	}
	text := terms.termsText()
	if known := p.known[text]; known != nil && known.Same(&terms) {
		p.last = known
		return known
	}
	if p.known == nil || len(p.known) >= maxPool {
		p.known = make(map[string]*Client)
	}
	p.known[text], p.last = &terms, &terms
	return &terms
}

// termsText returns a text that is the same for equal terms.
func (c *Client) termsText() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %d %s\n", c.Fleet, c.Recovery, list(c.Allow))
	c.writeTerms(&b)
	return b.String()
}
