package keys

import (
	"net/netip"
	"slices"
	"time"

	"sallyport/keys/service"
)

// A Client is what the server knows about one client: the contents of clients/NAME.toml.
// Callers must not modify what a Client from a file or a Registry points to: it is shared.
type Client struct {
	Name          string         // the file's name without .toml
	ID            ID             // names Key on the wire
	Key           Key            // shared with the client
	Previous      *Previous      // the key before the last rotation, while it is still good; or nil
	Allow         []string       // names of services, or ports: "tcp/8443", "udp/60000-60010"
	From          []netip.Prefix // the only sources it may come from; empty: any
	Deny          []netip.Prefix // sources it may not come from, also if From has them
	Widest4       int            // the least length of an IPv4 network around its own address that it may let in; 0: none
	Widest6       int            // the same for IPv6
	Delegate      []netip.Prefix // networks and addresses that it may let in from anywhere, or any part of them
	Expires       time.Time      // zero: never
	MaxFor        time.Duration  // the longest grant; zero: as the service says
	RequireSource bool           // requests must state their source
	When          []service.Span // when it may open, by the server's local time; none: always
	Revoked       time.Time      // zero: not revoked
	Recovery      int            // how many uses each of its keys has; 0: any number. The server's state counts them
	Fleet         bool           // it is from the fleet's bundle: its packets are for the server's id in the fleet
}

// MaxUses is the most uses that a recovery key can have.
const MaxUses = 100

// IDs returns the ids that the client's packets may have.
func (c *Client) IDs() []ID {
	if c.Previous == nil {
		return []ID{c.ID}
	}
	return []ID{c.ID, c.Previous.ID}
}

// Credentials returns the client's keys.
func (c *Client) Credentials() []Credential {
	list := []Credential{{Client: *c, ID: c.ID, Key: c.Key}}
	if p := c.Previous; p != nil {
		list = append(list, Credential{Client: *c, ID: p.ID, Key: p.Key, Until: p.Until})
	}
	return list
}

// Good reports whether the key has not ended by itself.
func (c Credential) Good(now time.Time) bool { return c.Until.IsZero() || now.Before(c.Until) }

// Previous is a client's key before its last rotation.
type Previous struct {
	ID    ID
	Key   Key
	Until time.Time // from then on it opens nothing
}

// A Credential is one of a client's keys, with which a packet may be sealed.
type Credential struct {
	Client Client
	ID     ID
	Key    Key
	Until  time.Time // zero: no end of its own
}

// Taken returns the ids of the keys that were good and are not any more. After is nil if the client is gone.
func Taken(before, after *Client, now time.Time) []ID {
	if after == nil {
		return before.IDs()
	}
	var taken []ID
	for _, was := range before.Credentials() {
		kept := func(is Credential) bool { return is.ID == was.ID && is.Key.Equal(was.Key) && is.Good(now) }
		if was.Good(now) && !slices.ContainsFunc(after.Credentials(), kept) {
			taken = append(taken, was.ID)
		}
	}
	return taken
}

// Rekeyed reports whether the client has lost all its keys, for others or none. Its grants must end then: nothing
// records which key opened them, so it may have been a stolen one.
func Rekeyed(before, after *Client, now time.Time) bool {
	had := slices.DeleteFunc(before.Credentials(), func(c Credential) bool { return !c.Good(now) })
	return len(Taken(before, after, now)) >= len(had)
}
