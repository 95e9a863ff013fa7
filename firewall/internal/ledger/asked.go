package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
)

// Behind the records, in their order, stands when each grant was asked for, big endian:
//
//	0  8  nanoseconds since 1970
//	8  8  sum: SHA-256(boot id || the record || the bytes before)[:8]
//
// If the sum is not that of the record, the time is not known: an earlier version, which neither reads nor writes it,
// has changed the record, or a crash came between the two writes.
const askedSize = 16

// putAsked writes when the grant of a record was asked for.
func (l *Ledger) putAsked(slot int, record []byte, asked time.Time) error {
	b := l.encodeAsked(record, asked.UnixNano())
	if _, err := l.Records.WriteAt(b[:], l.askedOffset()+int64(slot)*askedSize); err != nil {
		return fmt.Errorf("writing the ledger: %w", err)
	}
	return nil
}

// decodeAsked returns when the grant of a record was asked for, or the zero time if that is not known.
func (l *Ledger) decodeAsked(record, b []byte) time.Time {
	asked := int64(binary.BigEndian.Uint64(b))
	if again := l.encodeAsked(record, asked); !bytes.Equal(again[:], b) {
		return time.Time{}
	}
	return time.Unix(0, asked)
}

func (l *Ledger) encodeAsked(record []byte, asked int64) (b [askedSize]byte) {
	binary.BigEndian.PutUint64(b[:], uint64(asked))
	var room [RecordSize + 8]byte
	copy(b[8:], l.sum(append(append(room[:0], record...), b[:8]...)))
	return b
}

// askedOffset returns where the times stand in the file.
func (l *Ledger) askedOffset() int64 { return HeaderSize + int64(l.Slots)*RecordSize }
