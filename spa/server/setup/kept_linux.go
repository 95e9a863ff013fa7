package setup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"sallyport/spa/config"
	"sallyport/spa/fleet"
)

// The bundle in force is kept for the next start, in two files that are written in turn: a crash tears one of them at
// most. The server cannot make or rename files once its privileges are dropped, so both are made and opened at the
// start. Each is 8 bytes with the length, big endian, and the bundle; a longer one that was there before may follow.
//
// The server's user may own the files, so a bundle from them is verified like any other.

const keptHead = 8

func keptPath(state string, slot int) string {
	return filepath.Join(state, [2]string{config.BundlesFile, config.BundlesFile2}[slot])
}

// Kept is the two files, open for writing.
type Kept struct {
	files [2]*os.File
	next  int // which is written next: never that of the bundle in force
}

// OpenKept opens the files in a state directory, or makes them.
func OpenKept(state string) (*Kept, error) {
	var k Kept
	for slot := range k.files {
		path := keptPath(state, slot)
		err := Either(path, func() (err error) { k.files[slot], err = openLockFile(path); return err })()
		if err != nil {
			return nil, errors.Join(err, k.Close())
		}
	}
	return &k, nil
}

// InForce says which file has the bundle in force.
func (k *Kept) InForce(slot int) { k.next = 1 - slot }

// Save writes a bundle, which is in force from then on. If that fails the one before is still kept.
func (k *Kept) Save(text []byte) error {
	file := k.files[k.next]
	_, err := file.WriteAt(append(binary.BigEndian.AppendUint64(nil, uint64(len(text))), text...), 0)
	if err == nil {
		err = file.Sync()
	}
	if err != nil {
		return fmt.Errorf("keeping the bundle for the next start: %w", err)
	}
	k.next = 1 - k.next
	return nil
}

// Close closes the files.
func (k *Kept) Close() error {
	var errs []error
	for _, file := range k.files {
		if file != nil {
			errs = append(errs, file.Close())
		}
	}
	return errors.Join(errs...)
}

// readKept reads the bundle in one of the files, and returns when it was written.
func readKept(state string, slot int) ([]byte, time.Time, error) {
	file, err := openPlainFile(keptPath(state, slot))
	if err != nil {
		return nil, time.Time{}, err
	}
	defer file.Close()
	var head [keptHead]byte
	if _, err := io.ReadFull(file, head[:]); err != nil {
		return nil, time.Time{}, err
	}
	info, err := file.Stat()
	n := binary.BigEndian.Uint64(head[:])
	if err != nil || n > fleet.MaxFile || n > uint64(info.Size()) {
		return nil, time.Time{}, errors.Join(fleet.ErrFormat, err)
	}
	text := make([]byte, n)
	_, err = io.ReadFull(file, text)
	return text, info.ModTime(), err
}
