package action

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"sallyport/spa/config"
)

// ErrBusy is returned by Reserve when too many programs are waiting already.
var ErrBusy = errors.New("too many programs are waiting to be started")

// Grant is what a book knows of a grant.
type Grant struct {
	Client, Service string
	Source          netip.Addr
	Until           time.Time
}

func (g Grant) key() key { return key{g.Client, g.Service, g.Source} }

// Options are what a book needs to know.
type Options struct {
	File *os.File // see OpenFile; the book closes it
	// Held returns the grants that a client holds now.
	Held func(client string) []Grant
	// Report is called with what becomes of each program, in order. It is not called again before it has returned.
	Report func(Job, Event)
	Now    func() time.Time
}

// Book decides when programs are started, once for the begin and once for the end of each grant. Programs for the same
// client, service and address run one after the other.
//
// A grant is in the file before the firewall gets it, and until the program of its end was started. So that program is
// started at least once, whenever a process is killed or the power fails, and twice only if that happens between the
// start and the record of it. The same holds for the first program, as long as the grant lasts.
type Book struct {
	Options
	runner *Runner
	file   *file
	wake   chan struct{}

	mu      sync.Mutex // guards the fields below
	actions map[string]config.Action
	lines   map[key][]*entry // the oldest first; one that has not ended is the last
	fresh   []*entry         // not known to be on the disk yet
	queue   []*entry         // those with a program to start, in the order in which it became due
	running map[uint64]*entry
	skipped []Job // to be reported
	free    []int // slots of the file
	stuck   int   // how many programs of ends could not be started
	counts  map[Count]uint64
	unsaved error // why the file could not be written
}

// stage is where a grant is with its programs.
type stage uint8

const (
	claimed stage = iota // the firewall does not have it yet
	waiting              // for a program to be started
	busy                 // until that has ended
	idle                 // until the grant ends
)

type entry struct {
	record
	slot   int
	stage  stage
	hook   Hook // of the program that waits or runs
	pinned bool // it is being renewed
	synced bool // it outlives a loss of power
}

// Open starts the runner. Call it before privileges are dropped, and Recover and Run afterwards.
func Open(c *config.Config, o Options) (*Book, error) {
	b := &Book{Options: o, wake: make(chan struct{}, 1), lines: make(map[key][]*entry), running: make(map[uint64]*entry),
		counts: make(map[Count]uint64)}
	b.use(c)
	b.file = &file{o.File}
	var err error
	if b.runner, err = Start(c); err != nil {
		return nil, errors.Join(err, b.file.Close())
	}
	return b, nil
}

// Close ends the runner, which waits for its programs, and closes the file.
func (b *Book) Close() error { return errors.Join(b.runner.leave(), b.file.Close()) }

func (b *Book) use(c *config.Config) {
	b.actions = make(map[string]config.Action)
	for _, s := range c.Services {
		if s.Action.Any() {
			b.actions[s.Name] = s.Action
		}
	}
}

// Recover continues with what the file has, once the firewall has its grants.
func (b *Book) Recover() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	found, err := b.file.read()
	if err != nil {
		return err
	}
	var entries []*entry
	for slot := slots - 1; slot >= 0; slot-- {
		if r, ok := found[slot]; ok {
			entries = append(entries, &entry{record: r, slot: slot, stage: idle, synced: true})
			continue
		}
		b.free = append(b.free, slot)
	}
	slices.SortFunc(entries, func(a, b *entry) int { // what has ended comes first
		return cmp.Or(-cmp.Compare(a.phase, b.phase), a.until.Compare(b.until))
	})
	for _, e := range entries {
		if last := b.last(e.key); last != nil && last.phase != ended { // two that are live: one is forged
			b.end(last)
		}
		b.lines[e.key] = append(b.lines[e.key], e)
		switch live := b.holds(e.key); {
		case e.phase == ended || !live:
			b.end(e)
		case e.phase == reserved:
			b.due(e, Begin)
		}
	}
	b.poke()
	return nil
}

func (b *Book) last(k key) *entry {
	line := b.lines[k]
	if len(line) == 0 {
		return nil
	}
	return line[len(line)-1]
}

// holds reports whether the firewall holds a grant.
func (b *Book) holds(k key) bool {
	return slices.ContainsFunc(b.Held(k.client), func(g Grant) bool { return g.key() == k })
}

// Left makes the book look for grants that have ended. It returns at once.
func (b *Book) Left() {
	if b != nil {
		b.poke()
	}
}

func (b *Book) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Reservation is a place for the programs of a request's grants.
type Reservation struct {
	fresh, renewed []*entry
	until          []time.Time // to which renewed grants are prolonged
	starts         []string
}

// Starts reports whether a program of the service will be started.
func (r *Reservation) Starts(service string) bool { return slices.Contains(r.starts, service) }

// Reserve makes sure that the programs of these grants will be started once the firewall has the grants: those of all
// or of none. A grant that is held already begins nothing. Commit or Cancel must follow. A nil book has no programs.
func (b *Book) Reserve(gs []Grant) (*Reservation, error) {
	r := &Reservation{}
	if b == nil {
		return r, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range gs {
		if err := b.reserve(g, r); err != nil {
			b.cancel(r)
			return nil, fmt.Errorf("the program of %s cannot be started: %w", g.Service, err)
		}
	}
	return r, nil
}

func (b *Book) reserve(g Grant, r *Reservation) error {
	action, ok := b.actions[g.Service]
	if !ok {
		return nil
	}
	if last := b.last(g.key()); last != nil && last.phase != ended {
		if last.stage == claimed { // the service is named twice
			return nil
		}
		if b.holds(g.key()) {
			last.pinned = true
			r.renewed, r.until = append(r.renewed, last), append(r.until, g.Until)
			return nil
		}
		b.end(last)
	}
	if err := b.runner.Trouble(g.Service); err != nil {
		return err
	}
	if len(b.free) == 0 || b.crowded(g.Client, len(action.Run) > 0) {
		return ErrBusy
	}
	e := &entry{record: record{g.key(), newNumber(), g.Until, reserved}, slot: b.free[len(b.free)-1]}
	if err := b.file.write(e.slot, e.record); err != nil {
		return err
	}
	b.free = b.free[:len(b.free)-1]
	b.lines[e.key] = append(b.lines[e.key], e)
	b.fresh = append(b.fresh, e)
	r.fresh = append(r.fresh, e)
	if len(action.Run) > 0 {
		r.starts = append(r.starts, g.Service)
	}
	return nil
}

// newNumber returns a number that no other grant has.
func newNumber() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

// Commit follows when the firewall has the grants.
func (b *Book) Commit(r *Reservation) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range r.fresh {
		e.stage = idle
		if len(b.actions[e.service].Run) > 0 {
			b.due(e, Begin)
			continue
		}
		e.phase = begun
		b.save(e)
	}
	for i, e := range r.renewed {
		e.pinned = false
		if e.phase != ended {
			e.until = r.until[i]
			b.save(e)
		}
	}
	b.poke()
}

// Cancel follows when the firewall could not take the grants.
func (b *Book) Cancel(r *Reservation) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cancel(r)
	b.poke()
}

func (b *Book) cancel(r *Reservation) {
	for _, e := range r.fresh {
		b.remove(e, true)
	}
	for _, e := range r.renewed {
		e.pinned = false
	}
}

// end notes that a grant has ended. Its last program waits for the first. That is not started any more if the grant was
// closed or revoked before it could be.
func (b *Book) end(e *entry) {
	if e.phase != ended {
		e.phase = ended
		b.save(e)
	}
	if e.stage == waiting && e.hook == Begin && b.Now().Before(e.until) {
		b.skip(e)
	}
	if e.stage != idle {
		return
	}
	if len(b.actions[e.service].After) == 0 {
		b.remove(e, true)
		return
	}
	b.due(e, End)
}

// save writes an entry as it is.
func (b *Book) save(e *entry) {
	if err := b.file.write(e.slot, e.record); err != nil {
		b.unsaved = err
	}
}

// remove forgets an entry; if its last program is still to be started at the next start, the file keeps it.
func (b *Book) remove(e *entry, forgotten bool) {
	b.lines[e.key] = slices.DeleteFunc(b.lines[e.key], func(other *entry) bool { return other == e })
	if len(b.lines[e.key]) == 0 {
		delete(b.lines, e.key)
	}
	if !forgotten {
		b.stuck++
		return
	}
	if err := b.file.erase(e.slot); err != nil {
		b.unsaved = err
	}
	b.free = append(b.free, e.slot)
}

// Run starts programs, and notices when grants have ended, until ctx ends.
func (b *Book) Run(ctx context.Context) error {
	events := b.runner.events
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
			b.review()
		case n, ok := <-events:
			if !ok {
				events = nil
				b.lose()
				continue
			}
			b.heard(n)
		}
		b.sync()
		b.startNext()
		b.reportSkipped()
	}
}

// sync waits until the disk has what was reserved, so that no program starts whose end a loss of power makes the book
// forget. Knocks do not wait for it.
func (b *Book) sync() {
	b.mu.Lock()
	fresh := b.fresh
	b.fresh = nil
	b.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	err := b.file.Sync()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range fresh {
		e.synced = true
	}
	if err != nil {
		b.unsaved = err
	}
}

// review looks for grants that have ended.
func (b *Book) review() {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := make(map[string]map[key]bool) // by client
	for k := range b.lines {
		if held[k.client] == nil {
			held[k.client] = make(map[key]bool)
			for _, g := range b.Held(k.client) {
				held[k.client][g.key()] = true
			}
		}
		last := b.last(k)
		if last.phase != ended && last.stage != claimed && !last.pinned && !held[k.client][k] {
			b.end(last)
		}
	}
}

// heard takes what the runner reports.
func (b *Book) heard(n numbered) {
	b.mu.Lock()
	e := b.running[n.number]
	if e == nil {
		b.mu.Unlock()
		return
	}
	j := *e.job(e.hook)
	if n.event.What != Printed {
		b.counts[Count{e.service, e.hook, n.event.What}]++
	}
	b.proceed(n.number, e, *n.event)
	b.mu.Unlock()
	b.Report(j, *n.event)
}

// proceed records what has been started, and goes on with what comes after it.
func (b *Book) proceed(number uint64, e *entry, v Event) {
	if v.What == Started && e.hook == Begin && e.phase == reserved || v.What == Failed && e.phase == reserved {
		e.phase = begun
		b.save(e)
	}
	if v.What == Started && e.hook == End {
		if err := b.file.erase(e.slot); err != nil {
			b.unsaved = err
		}
	}
	if !v.over() {
		return
	}
	delete(b.running, number)
	if e.hook == End {
		b.remove(e, v.What != Failed)
		return
	}
	e.stage = idle
	if e.phase == ended {
		b.end(e)
	}
}

// lose reports the programs of which nothing more is known, because the runner has ended.
func (b *Book) lose() {
	b.mu.Lock()
	lost := make([]Job, 0, len(b.running))
	for number, e := range b.running {
		lost = append(lost, *e.job(e.hook))
		delete(b.running, number)
	}
	b.mu.Unlock()
	for _, j := range lost {
		b.Report(j, Event{What: Lost, Text: b.runner.Trouble("").Error()})
	}
}

// Reload takes the services of c, if the runner has read the same file and can start all programs. Undo follows if
// something else of a reload fails.
func (b *Book) Reload(c *config.Config) (undo func() error, err error) {
	if err := b.runner.Reload(c.Text()); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.actions
	b.use(c)
	return func() error {
		b.mu.Lock()
		b.actions = was
		b.mu.Unlock()
		return b.runner.Undo()
	}, nil
}
