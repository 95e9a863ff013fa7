package replay

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

const (
	defaultLive = 256
	maxLive     = 4096
	defaultRoom = 65536
)

// reason is why a journal does not answer for all stamps.
type reason uint8

const (
	intact reason = iota
	rebooted
	otherMachine
	missing
	damaged
)

var reasons = map[reason]string{
	rebooted:     "this machine was rebooted after the journal was written",
	otherMachine: "the journal was written by another machine",
	missing:      "there was no journal",
	damaged:      "the journal was damaged",
}

func (r reason) String() string { return reasons[r] }

// identity is the boot and the machine that a journal belongs to. They are hashes, because machine-id(5) asks not to
// expose the id.
type identity struct{ boot, machine [16]byte }

// complete fills in defaults, and returns whose journal it is.
func (c Config) complete() (Config, identity, error) {
	if c.Window <= 0 {
		return c, identity{}, fmt.Errorf("window of %v", c.Window)
	}
	if c.LiveNonces <= 0 {
		c.LiveNonces = defaultLive
	}
	if c.LiveNonces > maxLive {
		return c, identity{}, fmt.Errorf("%d live nonces per key, at most %d", c.LiveNonces, maxLive)
	}
	if c.Room <= 0 {
		c.Room = defaultRoom
	}
	if c.Room > maxRoom {
		return c, identity{}, fmt.Errorf("room for %d, at most %d", c.Room, maxRoom)
	}
	var err error
	if c.BootID == "" {
		c.BootID, err = bootID()
	}
	if c.MachineID == "" && err == nil {
		c.MachineID, err = machineID()
	}
	return c, identity{hash("boot", c.BootID), hash("machine", c.MachineID)}, err
}

func hash(label, id string) [16]byte {
	sum := sha256.Sum256([]byte("sallyport replay " + label + "\x00" + id))
	return [16]byte(sum[:])
}

// Create writes an empty journal, which answers for every stamp. It never overwrites a file. The file belongs to its
// directory's owner.
func Create(path string, c Config, now time.Time) error {
	c, id, err := c.complete()
	if err != nil {
		return err
	}
	d, err := create(path, c, header{Boot: id.boot, Machine: id.machine, HighWater: now.Add(lead).UnixNano()})
	if err != nil {
		return err
	}
	return d.Close()
}

func create(path string, c Config, h header) (disk, error) {
	f, err := createFile(path)
	if err != nil {
		return nil, err
	}
	s := newStore(f)
	if err := errors.Join(s.format(c.Room, h), syncDir(path)); err != nil {
		f.Close()
		os.Remove(path)
		return nil, fmt.Errorf("creating journal %q: %w", path, err)
	}
	return f, nil
}

// Open opens the journal. Afterwards nothing is opened, created or renamed, so the process may drop its rights. It
// takes no lock: the caller must make sure that nobody else has the journal open.
//
// If the journal is missing, damaged, or from before a reboot or another machine, it starts again, with a floor that
// is the window past both now and the high-water mark. A damaged journal is copied to its path and ".damaged". Status
// reports it.
func Open(path string, c Config, now time.Time) (*Journal, error) {
	c, id, err := c.complete()
	if err != nil {
		return nil, err
	}
	d, err := openOrCreate(path, c, id, now)
	if err != nil {
		return nil, err
	}
	j, err := open(d, c, id, now, func() string { return keepAside(path) })
	if err != nil {
		d.Close()
		return nil, err
	}
	return j, nil
}

// Foreign reports whether the journal was written on another machine, or was restarted on this one because of that:
// the files beside it may be a copy of another gateway's. It changes nothing.
func Foreign(path string, c Config) (bool, error) {
	_, id, err := c.complete()
	if err != nil {
		return false, err
	}
	f, err := openFile(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	s := newStore(f)
	if err := s.readHeader(); err != nil {
		return false, err
	}
	return s.header.Machine != id.machine || s.header.Reason == otherMachine, nil
}

func openOrCreate(path string, c Config, id identity, now time.Time) (disk, error) {
	f, err := openFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return create(path, c, header{}.renewed(missing, c, id, now))
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// open reads a journal, or starts it again.
func open(d disk, c Config, id identity, now time.Time, aside func() string) (*Journal, error) {
	j := &Journal{store: newStore(d)}
	why, err := j.load(c, id, now)
	if err != nil {
		return nil, err
	}
	if why == intact {
		return j, nil
	}
	if why == damaged {
		j.damaged = aside()
	}
	s := newStore(d)
	s.header = j.store.header
	if err := s.renew(s.header.renewed(why, c, id, now), c.Room); err != nil {
		return nil, err
	}
	j.store, j.memory = s, newMemory(c)
	return j, nil
}

// load reads the journal into memory if it is of this boot, and returns why it is not.
func (j *Journal) load(c Config, id identity, now time.Time) (reason, error) {
	err := j.store.readHeader()
	if errors.Is(err, errDamaged) {
		return damaged, nil
	}
	if err != nil {
		return intact, err
	}
	if why := j.store.header.mismatch(id); why != intact {
		return why, nil
	}
	err = j.loadSlots(c)
	if errors.Is(err, errDamaged) {
		return damaged, nil
	}
	if err != nil {
		return intact, err
	}
	return intact, j.store.trust(int64(c.Window), now.UnixNano())
}

// mismatch returns why the journal is not of this boot of this machine. A journal whose renewal was interrupted
// belongs to no boot, for the reason that it was renewed for.
func (h header) mismatch(id identity) reason {
	if h.Machine != id.machine {
		return otherMachine
	}
	if h.Boot == ([16]byte{}) {
		return h.Reason
	}
	if h.Boot != id.boot {
		return rebooted
	}
	return intact
}

// renewed returns the header of a journal that starts again: it admits nothing stamped up to the window past now and
// past every stamp that may have been admitted. It uses the longer of the current window and the previous one, as far
// as that is known: a stamp may be ahead by the window of a high-water mark that was lost. Only after a reboot is that
// known to cover those; otherwise the floor does from now on.
func (h header) renewed(why reason, c Config, id identity, now time.Time) header {
	floor := max(now.UnixNano(), h.HighWater) + max(int64(c.Window), h.Window)
	if why != rebooted {
		h.HighWater = floor
	}
	return header{
		Number: h.Number, Reason: why, Boot: id.boot, Machine: id.machine,
		HighWater: h.HighWater, Floor: floor, Window: int64(c.Window),
	}
}

// renew empties the journal in place, so that a full disk does not matter. Until it is empty it belongs to no boot:
// if interrupted, it starts again.
func (s *store) renew(h header, room int) error {
	unfinished := h
	unfinished.Boot = [16]byte{}
	if err := s.commit(unfinished); err != nil {
		return err
	}
	size, err := s.disk.Size()
	if err != nil {
		return fmt.Errorf("querying the journal's size: %w", err)
	}
	had := (size - firstSlot) / slotSize
	if had > maxRoom || s.reserve(max(room, int(had))) != nil {
		// The file is longer than the journal may be, or has holes that the disk has no space for.
		if err := s.disk.Truncate(offset(int32(room))); err != nil {
			return fmt.Errorf("truncating the journal: %w", err)
		}
		had = 0
	}
	room = max(room, int(had))
	if err := s.reserve(room); err != nil {
		return err
	}
	if err := s.scrub(); err != nil {
		return err
	}
	return s.format(room, h)
}

func (s *store) reserve(room int) error {
	if err := s.disk.Grow(0, offset(int32(room))); err != nil {
		return fmt.Errorf("reserving room for the journal: %w", err)
	}
	s.room.Store(int32(room))
	return nil
}

// format makes both headers valid.
func (s *store) format(room int, h header) error {
	if err := s.reserve(room); err != nil {
		return err
	}
	s.floor, s.reason = h.Floor, h.Reason
	if err := s.commit(h); err != nil {
		return err
	}
	return s.commit(h)
}

// trust syncs a header that was read: the process that wrote it may have been killed before it did. Another window is
// in the header before anything is admitted by it, beside the high-water mark for the previous one, and as with Retune
// it makes nothing fresh again.
func (s *store) trust(window, now int64) error {
	if err := s.disk.Sync(); err != nil {
		return fmt.Errorf("syncing the high-water mark: %w", err)
	}
	s.highWater.Store(s.header.HighWater)
	s.floor, s.reason = s.header.Floor, s.header.Reason
	if s.header.Window == window {
		return nil
	}
	return s.rewindow(window, now-s.header.Window)
}

// loadSlots reads the floors, then the spent nonces. It sorts these all at once: one by one, in an order that an
// attacker chose, would take for ever.
func (j *Journal) loadSlots(c Config) error {
	j.memory = newMemory(c)
	if err := j.store.each(j.store.room.Load(), j.loadFloors); err != nil {
		return err
	}
	var found []int32
	if err := j.store.each(j.store.next, func(slot int32, b []byte) error {
		there, err := j.loadSpent(slot, b)
		if there {
			found = append(found, slot)
		}
		return err
	}); err != nil {
		return err
	}
	entries := &j.memory.entries
	slices.SortFunc(found, func(a, b int32) int {
		return cmp.Or(cmp.Compare(entries.at(a).stamp, entries.at(b).stamp), cmp.Compare(a, b))
	})
	for _, slot := range found {
		j.memory.remember(slot, *entries.at(slot))
	}
	return nil
}

func (j *Journal) loadFloors(slot int32, b []byte) error {
	if isZero(b) {
		return nil
	}
	j.store.next = slot + 1
	switch b[4] {
	case kindSpent:
		return nil
	case kindKeys:
		return j.memory.keys.load(slot, b)
	case kindTopics:
		return j.memory.topics.load(slot, b)
	}
	return fmt.Errorf("%w: slot of an unknown kind", errDamaged)
}

// loadSpent reads a spent nonce into its place, and reports whether there is one to remember.
func (j *Journal) loadSpent(slot int32, b []byte) (bool, error) {
	if b[4] == kindKeys || b[4] == kindTopics {
		return false, nil
	}
	if isZero(b) {
		j.store.release(slot)
		return false, nil
	}
	key, e, err := decodeEntry(b)
	if err != nil {
		return false, err
	}
	if e.stamp > j.store.header.HighWater {
		return false, fmt.Errorf("%w: a spent nonce is stamped after the high-water mark", errDamaged)
	}
	if e.stamp <= j.memory.keys.stampOf(keyName(key)) {
		j.store.release(slot)
		return false, nil
	}
	if e.owner, err = j.memory.keys.known(keyName(key)); err != nil {
		return false, err
	}
	*j.memory.entries.at(slot) = e
	return true, nil
}

// keepAside copies a damaged journal for inspection and returns where.
func keepAside(path string) string {
	aside := path + ".damaged"
	if err := copyFile(aside, path); err != nil {
		os.Remove(aside)
		return fmt.Sprintf("not kept: %v", err)
	}
	return aside
}

func copyFile(to, from string) error {
	r, err := openFile(from)
	if err != nil {
		return err
	}
	defer r.Close()
	if size, err := r.Size(); err != nil || size > offset(maxRoom) {
		return errors.Join(err, errLong)
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	w, err := createFile(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(w.File, r.File)
	return errors.Join(err, w.Close())
}
