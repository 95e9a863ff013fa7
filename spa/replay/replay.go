// Package replay remembers what was spent: an authenticated nonce is admitted a single time.
package replay

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Verdicts of Admit. Any other error is trouble with the journal: nothing may be opened.
var (
	// ErrSpent: this nonce was admitted before.
	ErrSpent = errors.New("replay: nonce already spent")
	// ErrSpentElsewhere wraps ErrSpent: the nonce was admitted before, from another address.
	ErrSpentElsewhere = fmt.Errorf("%w from another address", ErrSpent)
	// ErrFloor: stamped at or before the floor that a reboot or a lost journal left; see Status.
	ErrFloor = errors.New("replay: stamped before this journal remembers")
	// ErrForgotten: stamped at or before what has been forgotten of this key.
	ErrForgotten = errors.New("replay: stamped at or before a nonce that is forgotten")
	// ErrFull: this key has as many live nonces as it may have. The nonce is not spent.
	ErrFull = errors.New("replay: too many live nonces of this key")
	// ErrReused: the request id was seen with another digest. The nonce is spent.
	ErrReused = errors.New("replay: request id already used for another request")
)

// MaxOutcome is the greatest length in bytes of an outcome.
const MaxOutcome = 112

// Config says what a journal is made for.
type Config struct {
	Window            time.Duration // freshness on both sides of the clock; must be positive
	LiveNonces        int           // live nonces a key; zero: 256
	BootID, MachineID string        // zero: of this machine
	Room              int           // nonces preallocated for; zero: 65536 (16 MiB)
}

// Entry is an authenticated, fresh packet.
type Entry struct {
	Key     uint64
	Nonce   [24]byte
	Request [16]byte
	Digest  [8]byte
	Stamp   time.Time
	From    netip.Addr
}

// Admission says what is known of the request that a spent nonce belongs to.
type Admission struct {
	Retry   bool      // the request id was seen before
	First   time.Time // stamp of the first packet with this request id
	At      time.Time // the server's time then
	Outcome []byte    // what Settle recorded; nil: nothing was, decide again
}

// Status describes a journal for people.
type Status struct {
	Floor      time.Time // stamps at or before it are refused; zero: no floor
	FloorUntil time.Time // clients with a right clock knock in vain until then
	Reason     string    // why there is a floor
	Damaged    string    // where a damaged journal was kept for inspection
	HighWater  time.Time // stamps up to it may be admitted without waiting for the disk
	Keys       int       // keys known
	Live       int       // nonces remembered
	Records    int       // records in use in the file
	Room       int       // records that the file has room for
}

// Journal is the replay memory. Its methods may be called by several goroutines.
type Journal struct{}

// Create writes an empty journal, never over an existing file.
func Create(path string, c Config, now time.Time) error { return errors.ErrUnsupported }

// Open opens the journal.
func Open(path string, c Config, now time.Time) (*Journal, error) { return nil, errors.ErrUnsupported }

// Admit spends a nonce.
func (j *Journal) Admit(e Entry, now time.Time) (Admission, error) {
	return Admission{}, errors.ErrUnsupported
}

// Settle records the outcome of a request id.
func (j *Journal) Settle(key uint64, id [16]byte, outcome []byte) error { return errors.ErrUnsupported }

// SetFloor raises the floor of a topic.
func (j *Journal) SetFloor(topic [16]byte, stamp time.Time) error { return errors.ErrUnsupported }

// FloorOf returns the floor of a topic.
func (j *Journal) FloorOf(topic [16]byte) time.Time { return time.Time{} }

// Status describes the journal.
func (j *Journal) Status() Status { return Status{} }

// Close closes the journal.
func (j *Journal) Close() error { return errors.ErrUnsupported }
