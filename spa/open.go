package spa

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"sallyport/keys"
)

// What Open refuses before the MAC has held. Nothing is known about such a packet but
// its reason, and nothing may be remembered or answered.
var (
	// ErrLength is returned for what is not 168 to 256 bytes long.
	ErrLength = errors.New("no packet has this length")
	// ErrGate is returned where the tag is of no gate key: noise, or a client of another server.
	ErrGate = errors.New("wrong gate tag")
	// ErrClient is returned where no client has the packet's id.
	ErrClient = errors.New("unknown client")
	// ErrMAC is returned where the client's key did not make the packet, or not for this server.
	ErrMAC = errors.New("wrong mac")
)

// What Open refuses after the MAC has held, wrapped in a *Refused. Such a packet is
// neither spent nor answered.
var (
	// ErrRevoked is wrapped where the client was revoked.
	ErrRevoked = errors.New("revoked client")
	// ErrRetired is wrapped where the key is a previous one whose time is over.
	ErrRetired = errors.New("retired key")
	// ErrMalformed is wrapped where the request is not one of this version of the protocol.
	ErrMalformed = errors.New("malformed request")
	// ErrStale is wrapped where the packet's time is further than the window from the server's, on either side.
	ErrStale = errors.New("stale packet")
)

// Refused is the error for a packet that a client's key did make. Nobody else can make
// one, but everybody who saw it can send it again.
type Refused struct {
	Err    error // wraps ErrRevoked, ErrRetired, ErrMalformed or ErrStale
	Client *keys.Client
	// Time is the packet's own time where Err is ErrStale, otherwise zero.
	Time time.Time
}

// Error returns the reason. It does not name the client.
func (r *Refused) Error() string { return r.Err.Error() }

// Unwrap returns Err.
func (r *Refused) Unwrap() error { return r.Err }

func malformed(why string) error { return fmt.Errorf("%w: %s", ErrMalformed, why) }

// Identity is what a server has to know of itself to open packets.
type Identity struct {
	Server keys.ServerID
	// Gates are the gate keys, at least one. All of them are tried.
	Gates []Gate
	// Window is how far a packet's time may be from the server's, on either side.
	Window time.Duration
}

// A Gate is a gate key of a server.
type Gate struct {
	Key   keys.GateKey
	Until time.Time // from then on it lets nothing in; zero: no end
}

// GatesOf returns the gates of a server that has these keys.
func GatesOf(g keys.Gates) []Gate {
	gates := []Gate{{Key: g.Current}}
	if !g.Previous.IsZero() {
		gates = append(gates, Gate{Key: g.Previous, Until: g.Until})
	}
	return gates
}

// Clients finds the key of a client. A *keys.Registry is one.
type Clients interface {
	// Lookup returns what is known of a key's id, whether it is good or revoked. Its cost
	// does not grow with the number of clients, and it allocates nothing.
	Lookup(keys.ID) (keys.Credential, bool)
}

// Knock is a request that has been authenticated and is fresh. Whether it comes for the
// first time, from where it may come and what it may ask for is yet to be decided.
type Knock struct {
	Request
	Nonce   Nonce
	Client  *keys.Client
	KeyID   keys.ID  // the id of the key that it was sealed with
	Key     keys.Key // that key: the receipt is sealed with it
	OldGate bool     // its gate key is one that has an end: the client has not got the new one yet
	Len     int      // the packet's length, also the receipt's
}

// Open says which request is in a packet, for a server of that identity, at the time
// now. The checks come in the order of the package documentation, the cheap ones first.
//
// The error is ErrLength, ErrGate, ErrClient or ErrMAC, as it stands and without an
// allocation, or a *Refused once the packet's client is certain. With an error the
// Knock is zero.
func Open(packet []byte, id *Identity, clients Clients, now time.Time) (Knock, error) {
	if len(packet) < MinLen || len(packet) > MaxLen {
		return Knock{}, ErrLength
	}
	keyID, old, ok := openGate(packet, id.Gates, now)
	if !ok {
		return Knock{}, ErrGate
	}
	cred, ok := clients.Lookup(keyID)
	if !ok || cred.Key.IsZero() {
		return Knock{}, ErrClient
	}
	end := len(packet) - macLen
	if !equalMAC(packet[end:], requestMAC(cred.Key, id.Server, packet[:end])) {
		return Knock{}, ErrMAC
	}
	if err := withdrawn(cred, now); err != nil {
		return Knock{}, &Refused{Err: err, Client: cred.Client}
	}
	nonce := Nonce(packet[:nonceLen])
	request, err := openBody(packet[bodyAt:end], cred.Key, &nonce)
	if err != nil {
		return Knock{}, &Refused{Err: err, Client: cred.Client}
	}
	if !fresh(request.Time, now, id.Window) {
		return Knock{}, &Refused{Err: ErrStale, Client: cred.Client, Time: request.Time}
	}
	return Knock{Request: request, Nonce: nonce, Client: cred.Client,
		KeyID: keyID, Key: cred.Key, OldGate: old, Len: len(packet)}, nil
}

// openGate checks the tag against every gate key, and returns the id that it covers and
// whether that gate has an end. The work is the same whichever of them is right.
func openGate(packet []byte, gates []Gate, now time.Time) (id keys.ID, old, ok bool) {
	tag := binary.BigEndian.Uint64(packet[gateTagAt:])
	found := -1
	for i, gate := range gates {
		if !gate.Key.IsZero() && equal64(tag, gateTag(gate.Key, packet[:gateTagAt])) {
			found = i
		}
	}
	if found < 0 || over(gates[found].Until, now) {
		return 0, false, false
	}
	sealed := binary.BigEndian.Uint64(packet[sealedIDAt:])
	id = keys.ID(sealID(gates[found].Key, packet[:nonceLen], sealed))
	return id, !gates[found].Until.IsZero(), true
}

// withdrawn returns why a key is good no more, or nil.
func withdrawn(c keys.Credential, now time.Time) error {
	switch {
	case !c.Client.Revoked.IsZero():
		return ErrRevoked
	case over(c.Until, now):
		return ErrRetired
	}
	return nil
}

// over reports whether an end has come: at its moment it has. A zero end never comes.
func over(until, now time.Time) bool { return !until.IsZero() && !now.Before(until) }

// openBody decrypts what of the body can be request.
func openBody(body []byte, key keys.Key, nonce *Nonce) (Request, error) {
	var plain [requestMax]byte
	stream(plain[:], body[:requestMax], key.RequestCipher(), nonce)
	return parseRequest(plain[:])
}

// fresh bounds both sides: without the upper bound an intercepted packet of a clock that
// runs ahead would stay good for as long as it does.
func fresh(stamp, now time.Time, window time.Duration) bool {
	age := now.Sub(stamp)
	return -window <= age && age <= window
}
