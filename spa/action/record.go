package action

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"sallyport/keys/service"
)

// The file of grants whose programs have not all been started: a header, then records of a fixed size, big endian, all
// zero where free. It is for this host and outlives a reboot, after which all of its grants have ended.
//
//	 0  16  magic
//	16   1  version
//	17      zero, up to headerSize
//
//	 0   8  number of the grant
//	 8   8  its end, nanoseconds since 1970
//	16  16  address, IPv4 mapped
//	32   4  index of the interface of a link-local address; 0: none
//	36  33  client: length, bytes, zeros
//	69  33  service: the same
//	102  1  phase
//	103     zeros
//	120  8  SHA-256(the bytes before)[:8], against a torn write
const (
	magic      = "sallyport action"
	version    = 1
	headerSize = 4096
	recordSize = 128
	sumOffset  = 120
	nameSize   = 33
	slots      = 4096
)

// Phases of a record.
const (
	reserved byte = 1 + iota // the grant may have begun; its first program was not started yet, as far as is known
	begun                    // the first program was started, or there is none
	ended                    // the grant has ended; its last program was not started yet, as far as is known
)

// key identifies a grant among those that are live.
type key struct {
	client, service string
	source          netip.Addr
}

// record is what the file has of a grant.
type record struct {
	key
	number uint64
	until  time.Time
	phase  byte
}

// file is the open file. Its user may own it, so what it holds may be forged: see decode.
type file struct{ *os.File }

// OpenFile opens the file of a book at path, or makes it, with all its space.
func OpenFile(path string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := prepare(f); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return f, nil
}

func prepare(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Nlink > 1 {
		return errors.New("not a regular file of its own: move it away")
	}
	want := append([]byte(magic), version)
	have := make([]byte, len(want))
	if _, err := f.ReadAt(have, 0); err != nil && err != io.EOF {
		return err
	}
	if !bytes.Equal(have, want) && !bytes.Equal(have, make([]byte, len(want))) {
		return errors.New("not a file of this version: move it away, and programs that are due at the end of grants " +
			"do not run")
	}
	if missing := headerSize + slots*recordSize - info.Size(); missing > 0 {
		if _, err := f.WriteAt(make([]byte, missing), info.Size()); err != nil {
			return err
		}
	}
	_, err = f.WriteAt(want, 0)
	return errors.Join(err, f.Sync())
}

// read returns the records by their slots.
func (f *file) read() (map[int]record, error) {
	all := make([]byte, slots*recordSize)
	if _, err := f.ReadAt(all, headerSize); err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	found := make(map[int]record)
	for slot := range slots {
		if r, ok := decode(all[slot*recordSize:][:recordSize]); ok {
			found[slot] = r
		}
	}
	return found, nil
}

func (f *file) write(slot int, r record) error { return f.put(slot, r.encode()) }
func (f *file) erase(slot int) error           { return f.put(slot, make([]byte, recordSize)) }

func (f *file) put(slot int, b []byte) error {
	if _, err := f.WriteAt(b, headerSize+int64(slot)*recordSize); err != nil {
		return fmt.Errorf("writing %s: %w", f.Name(), err)
	}
	return nil
}

func (r record) encode() []byte {
	b := make([]byte, recordSize)
	binary.BigEndian.PutUint64(b[0:], r.number)
	binary.BigEndian.PutUint64(b[8:], uint64(r.until.UnixNano()))
	source := r.source.As16()
	copy(b[16:], source[:])
	if link, err := strconv.ParseUint(r.source.Zone(), 10, 32); err == nil {
		binary.BigEndian.PutUint32(b[32:], uint32(link))
	}
	putName(b[36:36+nameSize], r.client)
	putName(b[69:69+nameSize], r.service)
	b[102] = r.phase
	sum := sha256.Sum256(b[:sumOffset])
	copy(b[sumOffset:], sum[:])
	return b
}

// decode returns the record, or false if encode would not write the same bytes, or not for a job that may be started.
func decode(b []byte) (record, bool) {
	if b[36] >= nameSize || b[69] >= nameSize || b[102] < reserved || b[102] > ended {
		return record{}, false
	}
	r := record{
		key: key{client: name(b[36 : 36+nameSize]), service: name(b[69 : 69+nameSize]),
			source: netip.AddrFrom16([16]byte(b[16:32])).Unmap()},
		number: binary.BigEndian.Uint64(b[0:]), until: time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))), phase: b[102],
	}
	if link := binary.BigEndian.Uint32(b[32:]); link != 0 {
		r.source = r.source.WithZone(strconv.FormatUint(uint64(link), 10))
	}
	j := r.job(Begin)
	return r, service.ValidName(r.service) == nil && j.check() == nil && bytes.Equal(r.encode(), b)
}

// job returns the job of a hook.
func (r record) job(h Hook) *Job {
	return &Job{Grant: r.number, Hook: h, Service: r.service, Client: r.client, Address: r.source, Until: r.until}
}

func putName(b []byte, s string) { b[0] = byte(copy(b[1:], s)) }

func name(b []byte) string { return string(b[1 : 1+b[0]]) }
