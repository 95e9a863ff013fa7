// Package replay remembers spent nonces: an authenticated nonce is admitted exactly once.
//
// Memory is in a file, the journal, before Admit returns: one write into the kernel, which outlives the process, so
// the packet's path never waits for the disk. A power loss may undo such writes, and implies a reboot: afterwards no
// stamp is admitted that could have been admitted before. For that the file has a high-water mark that is synced
// ahead of the packets.
//
// A nonce and its request id are remembered until its stamp is two windows old by the server's clock (a window and 30
// s, if the window is shorter). Until then a packet of the request that is stamped within 30 s of it is recognised,
// and afterwards it is stale. A packet that is stamped later tells when the request began: if anything of the key
// that was stamped since is forgotten, it is refused. Then the slot is reused, and a floor of the key, written first,
// refuses every stamp up to it, whatever the clock does later. Every other packet of the key that is still fresh is
// stamped after it.
//
// Slots are overwritten in place, in a preallocated file: a full disk does not matter. A slot never crosses a page,
// and the kernel copies into a page without looking at signals, so a killed process leaves a slot old or new. A slot
// that does not verify is therefore damage, and damage is treated like a lost journal: every stamp that may have been
// admitted is refused.
//
// Not protected: anyone who can write the file can make the server forget.
package replay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Verdicts of Admit. Any other error is a fault of the journal: nothing may be opened.
var (
	// ErrSpent: this nonce was admitted before.
	ErrSpent = errors.New("nonce already spent")
	// ErrSpentElsewhere is ErrSpent too: the nonce was admitted before, from another address.
	ErrSpentElsewhere error = spentElsewhere{}
	// ErrFloor: stamped at or before the floor that a reboot or a lost journal left; see Status.
	ErrFloor = errors.New("stamped before the journal's floor")
	// ErrForgotten: stamped at or before something of this key that has been forgotten, or, for an unknown request, its
	// first packet was.
	ErrForgotten = errors.New("stamped no later than a forgotten nonce of this key")
	// ErrFull: this key has as many fresh nonces as it may have, or twice as many that are remembered (more if the
	// window is shorter than 30 s). The nonce is not spent.
	ErrFull = errors.New("too many knocks of this key within the window (live_nonces in [limits] of server.toml)")
	// ErrReused: the request id was seen with another digest. The nonce is spent.
	ErrReused = errors.New("request id already used for another request")
)

// spentElsewhere wraps nothing: counters by the innermost error must distinguish it from ErrSpent.
type spentElsewhere struct{}

// Error names both facts, in a constant: a copy costs no allocation.
func (spentElsewhere) Error() string { return "nonce already spent, from another address" }

// Is reports that it is also ErrSpent.
func (spentElsewhere) Is(target error) bool { return target == ErrSpent }

var (
	errStale  = errors.New("stamp outside the window")
	errClosed = fmt.Errorf("journal: %w", os.ErrClosed)
)

// IsRefusal reports whether an error of Admit says something of the packet. Any other is a fault of the journal.
func IsRefusal(err error) bool {
	for _, refusal := range []error{ErrSpent, ErrFloor, ErrForgotten, ErrFull, ErrReused, errStale} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

// MaxOutcome is the maximum length of an outcome in bytes.
const MaxOutcome = 112

// Config describes a journal.
type Config struct {
	Window            time.Duration // freshness on both sides of the clock; must be positive
	LiveNonces        int           // fresh nonces a key, at most 4096; zero: 256
	BootID, MachineID string        // zero: of this machine
	Room              int           // records that a new journal has space for; zero: 65536, 16 MiB
}

// Entry is an authenticated, fresh packet.
type Entry struct {
	Key     uint64
	Nonce   [24]byte
	Request [16]byte
	Digest  [8]byte // of everything that must be equal in the packets of one request
	Stamp   time.Time
	First   time.Time // stamp of the request's first packet, if this one states it; zero otherwise
	From    netip.Addr
}

// Admission is what is known of a newly spent nonce's request.
type Admission struct {
	Retry   bool      // the request id was seen before
	First   time.Time // stamp of the first packet with this request id
	At      time.Time // the server's time then
	Outcome []byte    // recorded by Settle; nil: none, decide again
}

// Status describes a journal for people.
type Status struct {
	Floor      time.Time // stamps at or before it are refused; zero: none
	FloorUntil time.Time // until then clients with a correct clock are refused
	Reason     string    // why there is a floor
	Damaged    string    // where the damaged journal that Open found is kept, or why it is not
	HighWater  time.Time // no stamp after it was admitted
	Keys       int       // keys known
	Live       int       // nonces remembered
	Records    int       // slots in use
	Room       int       // slots in the file
}

// Journal is the replay memory. Several goroutines may call its methods.
type Journal struct {
	damaged string

	mu     sync.Mutex
	closed bool
	store  *store
	memory memory
}

// Admit spends a nonce that is authenticated and fresh: it returns nil once for each, and only when the nonce is in
// the journal. Now must be the time by which freshness was judged.
//
// A request id that was seen before, with the same digest, is a retry: its nonce is spent too, and Admit returns what
// is known of the request.
func (j *Journal) Admit(e Entry, now time.Time) (Admission, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	fresh := entry{
		nonce: e.Nonce, request: e.Request, digest: e.Digest, from: e.From.As16(),
		stamp: e.Stamp.UnixNano(), first: e.Stamp.UnixNano(), at: now.UnixNano(),
	}
	if !e.First.IsZero() {
		fresh.first = e.First.UnixNano()
	}
	if err := j.refuse(e.Key, &fresh, now.UnixNano()); err != nil {
		return Admission{}, err
	}
	if err := j.makeRoom(e.Key, &fresh, now.UnixNano()); err != nil {
		return Admission{}, err
	}
	known, err := j.lookUp(&fresh)
	if err != nil {
		return Admission{}, err
	}
	if err := j.spend(e.Key, fresh, known.Outcome); err != nil {
		return Admission{}, err
	}
	if fresh.reused {
		return Admission{}, ErrReused
	}
	return known, nil
}

// refuse returns why an entry must not be admitted, without side effects: a copy costs nothing else.
func (j *Journal) refuse(key uint64, e *entry, now int64) error {
	if j.closed {
		return errClosed
	}
	if e.stamp < now-j.memory.window || e.stamp > now+j.memory.window {
		return errStale
	}
	owner, known := j.memory.keys.index[keyName(key)]
	if known {
		if err := j.unspent(owner, e); err != nil {
			return err
		}
	}
	if e.stamp <= j.store.floor {
		return ErrFloor
	}
	if known && e.stamp <= j.memory.keys.list.at(owner).stamp {
		return ErrForgotten
	}
	return nil
}

func (j *Journal) unspent(owner int32, e *entry) error {
	slot, spent := j.memory.spent[nonceOf{owner, e.nonce}]
	if !spent {
		return nil
	}
	if j.memory.entries.at(slot).from != e.from {
		return ErrSpentElsewhere
	}
	return ErrSpent
}

// makeRoom forgets a little of what has expired, and returns the entry's owner, which must be within its limit.
func (j *Journal) makeRoom(key uint64, e *entry, now int64) error {
	j.memory.clock = now
	owner, err := j.memory.owner(j.store, key)
	if err != nil {
		return err
	}
	e.owner = owner
	if err := j.memory.forget(j.store, owner); err != nil {
		return err
	}
	if j.memory.full(owner) {
		return ErrFull
	}
	return j.memory.tidy(j.store)
}

// lookUp returns the request that the entry belongs to.
func (j *Journal) lookUp(e *entry) (Admission, error) {
	slot, retry := j.memory.requests[requestOf{e.owner, e.request}]
	if !retry && e.first <= j.memory.keys.list.at(e.owner).stamp {
		return Admission{}, ErrForgotten // it may have been done, by a packet that is forgotten
	}
	if !retry {
		return Admission{First: time.Unix(0, e.first), At: time.Unix(0, e.at)}, nil
	}
	before := j.memory.entries.at(slot)
	if before.digest != e.digest {
		e.reused = true
		return Admission{}, nil
	}
	e.first, e.at, e.settled = before.first, before.at, before.settled
	known := Admission{Retry: true, First: time.Unix(0, e.first), At: time.Unix(0, e.at)}
	if !before.settled {
		return known, nil
	}
	err := j.store.read(slot)
	if err == nil {
		known.Outcome, err = decodeOutcome(j.store.buf[:])
	}
	return known, err
}

// spend writes the entry into the journal and remembers it.
func (j *Journal) spend(key uint64, e entry, outcome []byte) error {
	if err := j.store.cover(e.stamp); err != nil {
		return err
	}
	slot, err := j.memory.allocate(j.store)
	if err != nil {
		return err
	}
	e.encode(j.store.buf, key, outcome)
	if err := j.store.write(slot); err != nil {
		j.store.release(slot)
		return err
	}
	j.memory.remember(slot, e)
	return nil
}

// Settle records the outcome of a request id, at most MaxOutcome bytes. Call it before the answer is sent, so that
// every packet of the request gets the same answer.
func (j *Journal) Settle(key uint64, id [16]byte, outcome []byte) error {
	if len(outcome) > MaxOutcome {
		return fmt.Errorf("outcome of %d bytes, at most %d", len(outcome), MaxOutcome)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errClosed
	}
	owner, known := j.memory.keys.index[keyName(key)]
	slot, ok := j.memory.requests[requestOf{owner, id}]
	if !known || !ok {
		return errors.New("settling a request that is not remembered")
	}
	e := j.memory.entries.at(slot)
	e.encode(j.store.buf, key, append([]byte{}, outcome...))
	if err := j.store.write(slot); err != nil {
		return err
	}
	e.settled = true
	return nil
}

// SetFloor raises the floor of a topic. It is in the journal when SetFloor returns; after a power loss the floor of
// the whole journal takes its place. A floor is never lowered.
func (j *Journal) SetFloor(topic [16]byte, stamp time.Time) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errClosed
	}
	if stamp.UnixNano() <= j.memory.topics.stampOf(topic) {
		return nil
	}
	i, known := j.memory.topics.index[topic]
	if !known {
		var err error
		if i, err = j.memory.name(j.store, &j.memory.topics, topic); err != nil {
			return err
		}
	}
	if err := j.memory.topics.raise(j.store, i, stamp.UnixNano()); err != nil {
		return err
	}
	// After a reboot what is stamped up to a window past the high-water mark is refused.
	return j.store.cover(stamp.UnixNano() - j.memory.window)
}

// FloorOf returns the floor of a topic, or the zero time if it has none.
func (j *Journal) FloorOf(topic [16]byte) time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return stampTime(j.memory.topics.stampOf(topic))
}

func stampTime(stamp int64) time.Time {
	if stamp == 0 {
		return time.Time{}
	}
	return time.Unix(0, stamp)
}

// Status describes the journal.
func (j *Journal) Status() Status {
	j.mu.Lock()
	defer j.mu.Unlock()
	floor := stampTime(j.store.floor)
	return Status{
		Floor: floor, FloorUntil: floor, Reason: j.store.reason.String(), Damaged: j.damaged,
		HighWater: stampTime(j.store.highWater.Load()),
		Keys:      len(j.memory.keys.index), Live: j.memory.live,
		Records: int(j.store.next) - len(j.store.free), Room: int(j.store.room.Load()),
	}
}

// Close closes the journal. Spent nonces stay spent.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	return j.store.close()
}
