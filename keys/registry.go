package keys

import "sync"

// A Registry is the clients of a server, by id. It is safe for concurrent use.
type Registry struct {
	dir string

	mu     sync.RWMutex
	byID   map[ID]*Client
	byName map[string]*Client
}

// Lookup returns the credential with this id: one map access, no allocation. Revoked and
// expired clients are returned too: whether they may is decided after the MAC.
func (r *Registry) Lookup(id ID) (Credential, bool) {
	r.mu.RLock()
	c, ok := r.byID[id]
	r.mu.RUnlock()
	if !ok {
		return Credential{}, false
	}
	if p := c.Previous; p != nil && p.ID == id {
		return Credential{Client: c, ID: id, Key: p.Key, Until: p.Until}, true
	}
	return Credential{Client: c, ID: id, Key: c.Key}, true
}
