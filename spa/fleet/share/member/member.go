// Package member is a gateway's half of sharing an address: it spends packets for all members of a site at the store
// that its agent reaches, learns what the others did, and waits with the answer to a close until all of them know.
// spa/models/README.md has the algorithm and what it promises.
//
// The server calls [Member.Spend] for a packet that its own journal admitted. The member calls its Decide back once, or
// never: then the packet gets no answer, and the client retries. In Decide, under the lock under which floors are
// raised, the server takes the last look before it touches the firewall: the stamp is still fresh, no floor is at or
// after it, and for Act and Repeat [Member.Alive]; for Act and Alone also share.Undone. If it does not act then, it
// calls [Member.GaveUp], and answers nothing. After it has changed the firewall for Act or Install, it looks at
// [Member.Alive] again, and takes back what it granted unless that still holds. After an act, and after a refusal that
// it answers, it calls [Member.Settled].
//
// No method waits for the store or for the server's lock.
package member

import (
	"log/slog"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
)

// Limits of what a member keeps in memory. What exceeds them is dropped and counted.
const (
	MaxSpends = 4096 // in flight or waiting
	MaxOfKey  = 8    // waiting, of one client key
	MaxEnds   = 1024 // closes and revocations that wait
	MaxLater  = 64   // of them, those for which nobody waits; further ones are announced when these are
	maxSettle = 4096
	maxGaveUp = 16384
	maxPeers  = 256
)

// EndWithin is how long an end waits for the other members: longer than a dead member's session lasts.
const EndWithin = share.SessionTTL + 5*time.Second

// A Site is the server. Its methods are called one after the other, and never together with a Decide or the done of an
// End.
type Site interface {
	// Install installs what another member granted, after a look at Member.Alive and the floors under the server's lock.
	// Anything else is skipped. Outcomes come in the order of the store's revisions, and may come again.
	Install(n News)
	// Raise puts another member's floor into force and ends what it says. An error means that it is not in force: the
	// member then leaves the others until it is. It may come again, in the order of the store's revisions.
	Raise(floor []byte) error
}

// News is an outcome of another member.
type News struct {
	Outcome []byte
	Member  string    // its name; empty: it has no session
	Sent    time.Time // by its own clock, to the store; zero: the store had it before this member was told of changes
}

// Config is what a member is. All fields but Log are needed, and Local may be false.
type Config struct {
	Fleet  keys.FleetID
	Site   string // its name, as in the server id
	Member string // this gateway's name
	Key    share.Key
	Window time.Duration // the longest freshness window of the members, and the most by which their clocks differ
	Local  bool          // decide alone when the store does not answer (standalone = "local")
	To     Site
	Log    *slog.Logger // nil: none
}

// How says what to do with a spent packet.
type How int

const (
	// Act: the packet belongs to this member alone. Decide what it asks for, act, answer.
	Act How = iota + 1
	// Repeat: the command was done. Answer with the outcome; do not act.
	Repeat
	// Alone: the store does not answer, and Config.Local says to decide as if there were no other member.
	Alone
)

// A Spend is a packet to spend.
type Spend struct {
	Key     keys.ID
	Nonce   [24]byte
	Request [16]byte
	// Decide is called at most once, from the goroutine that calls the Site. Outcome is set if how is Repeat: what
	// another member or an earlier packet passed to Settled.
	Decide func(how How, a *Attempt, outcome []byte)
}

// Status is what a member knows of itself and the others.
type Status struct {
	Connected bool   // an agent is
	Alive     bool   // see Member.Alive
	Refused   bool   // another run has this member's session: a second gateway of this name, or this one's last run
	Revision  int64  // of the store, as far as it is known here
	Peers     []Peer // sorted by name, with this member
	Waiting   int    // packets: in flight, or waiting for others of their key
	Unsettled int    // outcomes that the store does not have yet
	Ending    int    // closes and revocations that wait for others
	Counts    Counts
}

// A Peer is a member that has a session.
type Peer struct {
	Name         string
	Acknowledged int64 // it has every floor up to this revision in force
}

// Counts are numbers since the start.
type Counts struct {
	Won, Repeated, Spent uint64 // answers of the store
	Unanswered           uint64 // packets without one in time: silent, or decided alone
	Pending              uint64 // packets of a command that another attempt has and has not settled: silent
	Alone                uint64 // of Unanswered: decided alone
	Dropped              uint64 // packets that Spend did not take
	Installed, Raised    uint64 // outcomes and floors of others
	Unsealed             uint64 // values of the store that do not open
	Unannounced          uint64 // outcomes that were never recorded
	Unended              uint64 // closes and revocations that were not known to hold everywhere
	Lapses               uint64 // how often the session was lost
}
