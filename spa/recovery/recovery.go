// Package recovery counts the uses of recovery keys, each of which is good for a few.
//
// The count of a key is in a file of the server's state, by the key's id, from the moment at which spa-keygen makes the
// key. A use is in the file, and synced, before the firewall is touched: a killed server, a restart, a reload and an
// edited or restored client file give none back. Records are overwritten in place, so a full disk does not matter.
//
// A key without a record has no uses. So lost state, a state directory from before the key, and a copy of the file
// shut the key until it is replaced: each record names the file that it was written to, by its inode, the moment at
// which that was made, and the machine. Only [Copy] writes records for another file.
//
// An older content that is written over the file in place is found by [Book.Verify], as long as the replay journal has
// what there was since.
//
// Not protected: anyone who can write the file can give uses back, and so does a snapshot of the whole file system. If
// the file system does not record when a file was made, the inode alone distinguishes a copy.
package recovery

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"sallyport/keys"
)

// The file is a header, then records of a fixed size, big endian. Spa-keygen appends records; the server changes how
// many uses there were, and the request that had the last.
//
//	 0  16  magic
//	16   1  version
//	17      zeros, up to recordSize
//
//	 0   8  id of the key
//	 8   8  the file: see seal
//	16   4  uses that the key has
//	20   4  uses that there were
//	24  16  request id of the last
//	40   8  time of the last, nanoseconds since 1970
//	48      zeros
//	56   8  SHA-256(the bytes before)[:8], against a torn write
const (
	magic      = "sallyport uses\x00\x00"
	version    = 1
	recordSize = 64
	sumOffset  = 56
	maxRecords = 1 << 16
)

var (
	// ErrSpent means that a key had all its uses.
	ErrSpent = errors.New("no uses left")
	// ErrLost means that it is not known how many uses a key has left: the state was lost, or is a copy.
	ErrLost = errors.New("the count of its uses is lost")

	errUncounted = errors.New("only a running server counts the uses of a recovery key")
)

// Count is how many uses a key has and had.
type Count struct {
	ID         keys.ID
	Uses, Used int
	Last       time.Time // zero: there was none
}

// Left returns how many uses are left to a client whose file allows most; 0: as many as the key has.
func (c Count) Left(most int) int {
	if most == 0 {
		most = c.Uses
	}
	return max(0, min(c.Uses, most)-c.Used)
}

type record struct {
	Count
	seal    [8]byte
	request [16]byte
	at      int64 // where the file has it
}

func (r *record) encode() []byte {
	b := make([]byte, recordSize)
	binary.BigEndian.PutUint64(b, uint64(r.ID))
	copy(b[8:], r.seal[:])
	binary.BigEndian.PutUint32(b[16:], uint32(r.Uses))
	binary.BigEndian.PutUint32(b[20:], uint32(r.Used))
	copy(b[24:], r.request[:])
	if !r.Last.IsZero() {
		binary.BigEndian.PutUint64(b[40:], uint64(r.Last.UnixNano()))
	}
	sum := sha256.Sum256(b[:sumOffset])
	copy(b[sumOffset:], sum[:])
	return b
}

// decode returns the record, or false if encode would not write the same bytes.
func decode(b []byte, at int64) (record, bool) {
	r := record{at: at, seal: [8]byte(b[8:16]), request: [16]byte(b[24:40]), Count: Count{
		ID:   keys.ID(binary.BigEndian.Uint64(b)),
		Uses: int(binary.BigEndian.Uint32(b[16:])), Used: int(binary.BigEndian.Uint32(b[20:])),
	}}
	if last := int64(binary.BigEndian.Uint64(b[40:])); last != 0 {
		r.Last = time.Unix(0, last)
	}
	good := r.ID != 0 && 1 <= r.Uses && r.Uses <= keys.MaxUses && r.Used <= r.Uses
	return r, good && bytes.Equal(r.encode(), b)
}

// records returns the records that were written to this file on this machine, by their ids. Of two for one id the one
// with more uses counts.
func records(f *os.File, machine []byte) (map[keys.ID]record, error) {
	mine, err := seal(f, machine)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkHeader(f, info); err != nil {
		return nil, err
	}
	found := make(map[keys.ID]record)
	all := make([]byte, min(info.Size()/recordSize, maxRecords)*recordSize)
	if _, err := f.ReadAt(all, 0); err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	for at := recordSize; at < len(all); at += recordSize {
		r, ok := decode(all[at:at+recordSize], int64(at))
		if before, twice := found[r.ID]; ok && r.seal == mine && (!twice || before.Used < r.Used) {
			found[r.ID] = r
		}
	}
	return found, nil
}

func header() []byte {
	b := make([]byte, recordSize)
	copy(b, magic)
	b[len(magic)] = version
	return b
}

func checkHeader(f *os.File, info fs.FileInfo) error {
	b := make([]byte, recordSize)
	if info.Size() >= recordSize {
		if _, err := f.ReadAt(b, 0); err != nil {
			return fmt.Errorf("reading %s: %w", f.Name(), err)
		}
	}
	if !bytes.Equal(b, header()) {
		return fmt.Errorf("%s is not a file of this version: move it away, and make new recovery keys with spa-keygen "+
			"rotate", f.Name())
	}
	return nil
}

func counts(found map[keys.ID]record) []Count {
	list := make([]Count, 0, len(found))
	for _, r := range found {
		list = append(list, r.Count)
	}
	slices.SortFunc(list, func(a, b Count) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Book is the open file of a running server. Its methods may be called at the same time.
type Book struct {
	machine []byte

	mu    sync.Mutex
	again func() (*os.File, error) // opens the file if there was none
	file  *os.File                 // nil: there is none yet
	known map[keys.ID]record
	older map[keys.ID]bool // whose records are older than what is known elsewhere
	why   error            // why there is none, or why it cannot be read
	tried uint64           // in vain
}

// New returns the book of the file that open opens. If that fails, or if the file cannot be read, no recovery key can
// be used: see [Book.Trouble]. [Book.Refresh] tries again, with later, which may have fewer rights.
func New(open func() (*os.File, error), later func() (*os.File, error)) *Book {
	b := &Book{again: open, older: make(map[keys.ID]bool)}
	if b.machine, b.why = machineID(); b.why == nil {
		_ = b.Refresh()
	}
	b.again = later
	return b
}

// Refresh reads keys that spa-keygen has made since. What it had read stays known.
func (b *Book) Refresh() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refresh()
}

func (b *Book) refresh() error {
	if b.file == nil {
		if b.file, b.why = b.again(); b.why != nil {
			b.file = nil
			return b.why
		}
	}
	found, err := records(b.file, b.machine)
	if b.why = err; err != nil {
		return err
	}
	maps.DeleteFunc(found, func(id keys.ID, _ record) bool { return b.older[id] })
	for id, was := range b.known {
		if is, ok := found[id]; !ok || is.Used < was.Used { // what was used stays used while the server runs
			found[id] = was
		}
	}
	b.known = found
	return nil
}

// Verify compares each record with the number of uses that there were for certain, and loses those that have fewer: the
// file was written over with an older one.
func (b *Book) Verify(certain func(Count) int) (older []keys.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, r := range b.known {
		if r.Used < certain(r.Count) {
			older = append(older, id)
			b.older[id] = true
			delete(b.known, id)
		}
	}
	return older
}

// Trouble returns why no recovery key can be used, or nil.
func (b *Book) Trouble() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

// Use takes one of the uses of a key for a request, before anything is opened. Most is how many the client's file
// allows; 0 if that has no limit, and then a key without a record is not a recovery key: its count is zero. A request
// that the journal knows has the use that it had. A nil Book, as spa-server inspect has it, refuses recovery keys.
func (b *Book) Use(id keys.ID, most int, request [16]byte, again bool, now time.Time) (Count, error) {
	switch {
	case b == nil && most > 0:
		return Count{ID: id}, errUncounted
	case b == nil:
		return Count{}, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	r, known := b.known[id]
	if !known && most > 0 {
		_ = b.refresh() // the watcher may not have seen the client's file yet
		r, known = b.known[id]
	}
	if !known && most == 0 {
		return Count{}, nil
	}
	if known && again && r.Used > 0 && r.request == request {
		return r.Count, nil
	}
	var err error
	switch {
	case !known:
		r.ID, err = id, ErrLost
	case r.Left(most) == 0:
		err = ErrSpent
	default:
		r.Used, r.Last, r.request = r.Used+1, now, request
		b.known[id] = r // even if it cannot be written
		err = b.write(r)
	}
	if err != nil {
		b.tried++
		return r.Count, err
	}
	return r.Count, nil
}

func (b *Book) write(r record) error {
	if _, err := b.file.WriteAt(r.encode(), r.at); err != nil {
		return fmt.Errorf("writing %s: %w", b.file.Name(), err)
	}
	if err := syncData(b.file); err != nil {
		return fmt.Errorf("syncing %s: %w", b.file.Name(), err)
	}
	return nil
}

// Count returns the count of a key, and whether the key has one.
func (b *Book) Count(id keys.ID) (Count, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, ok := b.known[id]
	return r.Count, ok
}

// Total returns how often the keys of the file were used, and how often keys were refused since the book was opened.
func (b *Book) Total() (used, refused uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.known {
		used += uint64(r.Used)
	}
	return used, b.tried
}

// Close closes the file.
func (b *Book) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}

// Read returns the counts of the file at path. Without a file there are none.
func Read(path string) ([]Count, error) {
	f, err := openPlain(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	machine, err := machineID()
	if err != nil {
		return nil, err
	}
	found, err := records(f, machine)
	return counts(found), err
}

// Add gives a new key its uses, in the file at path, which it makes if there is none. It is synced when Add returns.
// Only one program may add at a time.
func Add(path string, id keys.ID, uses int) error {
	f, err := OpenFile(path)
	if err != nil {
		return err
	}
	defer f.Close()
	machine, err := machineID()
	if err != nil {
		return err
	}
	found, err := records(f, machine)
	if err != nil {
		return err
	}
	if _, twice := found[id]; twice {
		return fmt.Errorf("%s has a key of this id already", path)
	}
	return appendRecord(f, record{Count: Count{ID: id, Uses: uses}}, machine)
}

// appendRecord writes a record after the last whole one.
func appendRecord(f *os.File, r record, machine []byte) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	at := info.Size() / recordSize * recordSize
	if at >= maxRecords*recordSize {
		return fmt.Errorf("%s is full: move it away, and make new recovery keys with spa-keygen rotate", f.Name())
	}
	if r.seal, err = seal(f, machine); err != nil {
		return err
	}
	if _, err := f.WriteAt(r.encode(), at); err != nil {
		return fmt.Errorf("writing %s: %w", f.Name(), err)
	}
	return f.Sync()
}

// Copy writes the counts of a file into a new one, which takes its place. The caller removes the old one.
func Copy(to, from *os.File) error {
	machine, err := machineID()
	if err != nil {
		return err
	}
	found, err := records(from, machine)
	if err != nil {
		return err
	}
	if _, err := to.WriteAt(header(), 0); err != nil {
		return fmt.Errorf("writing %s: %w", to.Name(), err)
	}
	for _, c := range counts(found) {
		if err := appendRecord(to, found[c.ID], machine); err != nil {
			return err
		}
	}
	return to.Sync()
}

// OpenFile opens the file at path, or makes it. A new one belongs to the owner of the journal beside it, who is the
// server's user, or else to the owner of the directory.
func OpenFile(path string) (*os.File, error) {
	f, err := openPlain(path, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return create(path)
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || info.Size() > 0 {
		return f, err
	}
	return begin(f)
}
