package replay

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// start is an arbitrary time; no test here reads the clock.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// An op is one operation on a memDisk.
type op struct {
	kind string // write, grow, cut, sync, close
	off  int64
	data []byte
}

// memDisk is a file in memory that records operations, and fails where a test tells it to.
type memDisk struct {
	fail func(o op) error

	mu    sync.Mutex
	image []byte
	ops   []op
}

var _ disk = (*memDisk)(nil)

func (d *memDisk) do(o op) error {
	if d.fail != nil {
		if err := d.fail(o); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ops = append(d.ops, o)
	d.image = o.apply(d.image, len(o.data))
	return nil
}

// apply does the first n bytes of the op to an image.
func (o op) apply(image []byte, n int) []byte {
	if o.kind == "cut" {
		return image[:min(int64(len(image)), o.off)]
	}
	end := int(o.off) + len(o.data)
	if end > len(image) {
		image = append(image, make([]byte, end-len(image))...)
	}
	if o.kind == "write" {
		copy(image[o.off:], o.data[:n])
	}
	return image
}

func (d *memDisk) WriteAt(b []byte, off int64) (int, error) {
	return len(b), d.do(op{"write", off, bytes.Clone(b)})
}

func (d *memDisk) ReadAt(b []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off >= int64(len(d.image)) {
		return 0, io.EOF
	}
	n := copy(b, d.image[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memDisk) Grow(from, size int64) error { return d.do(op{kind: "grow", off: size}) }
func (d *memDisk) Truncate(size int64) error   { return d.do(op{kind: "cut", off: size}) }
func (d *memDisk) Sync() error                 { return d.do(op{kind: "sync"}) }
func (d *memDisk) Close() error                { return d.do(op{kind: "close"}) }

func (d *memDisk) Size() (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.image)), nil
}

// done returns the number of ops so far.
func (d *memDisk) done() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ops)
}

// tight makes the file grow by only a page at a time, which keeps its images small.
func (d *memDisk) tight(o op) error {
	if size, _ := d.Size(); o.kind == "grow" && o.off > size+page {
		return errBroken
	}
	return nil
}

func config() Config {
	return Config{Window: 30 * time.Second, BootID: "boot", MachineID: "machine", Room: 64}
}

// blank returns a disk with the journal that Create makes.
func blank(t testing.TB, c Config) *memDisk {
	t.Helper()
	c, id, err := c.complete()
	lab.Must(t, err)
	d := new(memDisk)
	lab.Must(t, newStore(d).format(c.Room, header{Boot: id.boot, Machine: id.machine, Window: int64(c.Window)}))
	return d
}

func reopen(t testing.TB, d *memDisk, c Config, now time.Time) *Journal {
	t.Helper()
	c, id, err := c.complete()
	lab.Must(t, err)
	j := lab.Value(open(d, c, id, now, func() string { return "aside" }))(t)
	return j
}

func fresh(t testing.TB, c Config) (*Journal, *memDisk) {
	d := blank(t, c)
	return reopen(t, d, c, start), d
}

// packet returns the n-th packet of a key, each with its own request id.
func packet(key uint64, n int, stamp time.Time) Entry {
	e := Entry{Key: key, Stamp: stamp, From: netip.MustParseAddr("192.0.2.2")}
	binary.LittleEndian.PutUint64(e.Nonce[:], uint64(n)+1)
	binary.LittleEndian.PutUint64(e.Request[:], uint64(n)+1)
	return e
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func admit(t testing.TB, j *Journal, e Entry, now time.Time, want error) Admission {
	t.Helper()
	a, err := j.Admit(e, now)
	if err != want {
		t.Fatalf("Admit of key %d, nonce %x: got %v, want %v", e.Key, e.Nonce[:4], err, want)
	}
	return a
}

func after(d time.Duration) time.Time { return start.Add(d) }

// copyOf returns another disk with the same image.
func copyOf(d *memDisk) *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &memDisk{image: slices.Clone(d.image)}
}
