package spa

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
)

// Errors of Open before the MAC was verified. Nothing is known about such a packet but the reason, and nothing may be
// remembered or answered.
var (
	// ErrLength means that the packet is not 168 to 256 bytes long.
	ErrLength = errors.New("not the length of a packet")
	// ErrGate means that the tag matches none of the server's gate keys: noise, or a packet for another server.
	ErrGate = errors.New("wrong gate tag")
	// ErrClient means that no client has the packet's id.
	ErrClient = errors.New("unknown client")
	// ErrMAC means that the client's key did not make the packet, or not for this server.
	ErrMAC = errors.New("wrong mac")
)

// Errors of Open after the MAC was verified, wrapped in a *Refused. Such a packet is neither spent nor answered.
var (
	// ErrRevoked means that the client was revoked.
	ErrRevoked = errors.New("revoked client")
	// ErrRetired means that the key is a previous one whose time is over.
	ErrRetired = errors.New("retired key")
	// ErrMalformed means that the request does not follow this version of the protocol.
	ErrMalformed = errors.New("malformed request")
	// ErrStale means that the packet's time differs from the server's by more than the window, either way.
	ErrStale = errors.New("stale packet")
)

// Refused is the error for a packet that a client's key made. Nobody else can make one, but anyone who saw it can
// send it again.
type Refused struct {
	Err    error // wraps ErrRevoked, ErrRetired, ErrMalformed or ErrStale
	Client *keys.Client
	// Time is the packet's own time if Err is ErrStale, otherwise zero.
	Time time.Time
}

// Error returns the reason. It does not name the client.
func (r *Refused) Error() string { return r.Err.Error() }

// Unwrap returns Err.
func (r *Refused) Unwrap() error { return r.Err }

// A malformed error says why a request is malformed. It wraps ErrMalformed. A constant one costs no allocation.
type malformed string

func (why malformed) Error() string { return ErrMalformed.Error() + ": " + string(why) }

func (why malformed) Unwrap() error { return ErrMalformed }

// Identity is what a server needs to know of itself to open packets.
type Identity struct {
	Server keys.ServerID
	// Fleet is the server's id in its fleet, for the clients that it has from there.
	Fleet keys.ServerID
	// Gates are the gate keys, at least one. All of them are tried.
	Gates []Gate
	// Window is how far a packet's time may be from the server's, either way.
	Window time.Duration
}

// ServerFor returns the server id for which the client's packets are made.
func (id *Identity) ServerFor(c *keys.Client) keys.ServerID {
	if c.Fleet {
		return id.Fleet
	}
	return id.Server
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

// Clients finds the key of a client. *keys.Registry implements it.
type Clients interface {
	// Lookup returns the credential with this id, valid or revoked. Its cost does not grow with the number of clients,
	// and it does not allocate.
	Lookup(keys.ID) (keys.Credential, bool)
}

// Knock is a request that is authenticated and fresh. It is not yet decided whether it arrives for the first time,
// where it may come from and what it may open.
type Knock struct {
	Request
	Nonce   Nonce
	Client  *keys.Client
	KeyID   keys.ID  // the id of the key that it was sealed with
	Key     keys.Key // that key: the receipt is sealed with it
	OldGate bool     // its gate key is one that has an end: the client has not got the new one yet
	Len     int      // the packet's length, also the receipt's
}

// Clone returns a copy that shares nothing with the Opener that returned k.
func (k *Knock) Clone() *Knock {
	c, client := *k, *k.Client
	c.Client, c.Services = &client, slices.Clone(k.Services)
	return &c
}

// Open returns the request in a packet, for a server of this identity, at the time now. Checks are in the order of
// the package documentation, cheap ones first.
//
// The error is ErrLength, ErrGate, ErrClient or ErrMAC, unwrapped, or a *Refused once the packet's client is certain.
// With an error the Knock is zero. A server uses an Opener, which does not allocate.
func Open(packet []byte, id *Identity, clients Clients, now time.Time) (Knock, error) {
	var o Opener
	k, err := o.Open(packet, id, clients, now)
	if err != nil {
		return Knock{}, err
	}
	return *k, nil
}

// An Opener opens packets one after another in the same memory. What Open returns, also a *Refused, is valid until its
// next call: keep a Clone. The only thing that it allocates is the name of a service that is not in its client's file
// and was not in the packet before.
type Opener struct {
	knock    Knock
	client   keys.Client // whose knock it is
	refused  Refused
	services [maxServices]service.Service
}

// Open is the function Open.
func (o *Opener) Open(packet []byte, id *Identity, clients Clients, now time.Time) (*Knock, error) {
	if len(packet) < MinLen || len(packet) > MaxLen {
		return nil, ErrLength
	}
	keyID, old, ok := openGate(packet, id.Gates, now)
	if !ok {
		return nil, ErrGate
	}
	cred, ok := clients.Lookup(keyID)
	if !ok || cred.Key.IsZero() {
		return nil, ErrClient
	}
	end := len(packet) - macLen
	if !equalMAC(packet[end:], requestMAC(cred.Key, id.ServerFor(&cred.Client), packet[:end])) {
		return nil, ErrMAC
	}
	o.client = cred.Client
	if err := withdrawn(&o.client, cred.Until, now); err != nil {
		return nil, o.refuse(err, &o.client, time.Time{})
	}
	o.knock = Knock{Nonce: Nonce(packet[:nonceLen]), Client: &o.client, KeyID: keyID, Key: cred.Key, OldGate: old,
		Len: len(packet)}
	if err := o.openBody(packet[bodyAt:end]); err != nil {
		return nil, o.refuse(err, &o.client, time.Time{})
	}
	if !fresh(o.knock.Time, now, id.Window) {
		return nil, o.refuse(ErrStale, &o.client, o.knock.Time)
	}
	return &o.knock, nil
}

// refuse returns the error for a packet whose client is certain.
func (o *Opener) refuse(err error, client *keys.Client, stamp time.Time) error {
	o.refused = Refused{Err: err, Client: client, Time: stamp}
	return &o.refused
}

// openBody decrypts the part of the body that can be the request.
func (o *Opener) openBody(body []byte) error {
	var plain [requestMax]byte
	stream(plain[:], body[:requestMax], o.knock.Key.RequestCipher(), &o.knock.Nonce)
	request, err := parseRequest(plain[:], o.services[:0], o.knock.Client.Allow)
	o.knock.Request = request
	return err
}

// openGate checks the tag against every gate key, and returns the id that it covers and the end of that gate key, if
// it has one. The work is the same whichever key matches.
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

// withdrawn returns why a client's key is no longer valid, or nil.
func withdrawn(c *keys.Client, until, now time.Time) error {
	switch {
	case !c.Revoked.IsZero():
		return ErrRevoked
	case over(until, now):
		return ErrRetired
	}
	return nil
}

// over reports whether an end has come; at its own moment it has. A zero end never comes.
func over(until, now time.Time) bool { return !until.IsZero() && !now.Before(until) }

// fresh checks both sides: without the upper bound, an intercepted packet from a clock that is ahead would stay valid
// for as long as it is ahead.
func fresh(stamp, now time.Time, window time.Duration) bool {
	age := now.Sub(stamp)
	return -window <= age && age <= window
}
