package office

import (
	"crypto/ed25519"
	"fmt"
	"iter"
	"os"
	"sync/atomic"

	"sallyport/keys/place"
	"sallyport/spa/fleet"
)

// A spool keeps sealed bundles in a file until they are put: together they can be larger than memory.
type spool struct {
	file    *os.File
	close   func() error
	end     atomic.Int64
	bundles []extent
	taken   []ed25519.PublicKey // what fleet.Bundle.Taken of each was
}

// An extent is where a bundle lies in the file.
type extent struct{ from, size int64 }

// newSpool makes the spool for n bundles. Its caller closes it.
func (o *Office) newSpool(n int) (*spool, error) {
	file, remove, err := place.Scratch(o.path(spoolFile))
	if err != nil {
		return nil, err
	}
	return &spool{file: file, close: remove, bundles: make([]extent, n), taken: make([]ed25519.PublicKey, n)}, nil
}

// add keeps the ith bundle. Several may be added at once.
func (s *spool) add(i int, b *fleet.Bundle) error {
	text := b.Bytes()
	size := int64(len(text))
	s.bundles[i], s.taken[i] = extent{s.end.Add(size) - size, size}, b.Taken()
	if _, err := s.file.WriteAt(text, s.bundles[i].from); err != nil {
		return fmt.Errorf("keeping a bundle until all are made: %w", err)
	}
	return nil
}

// all returns the bundles one after the other.
func (s *spool) all() iter.Seq2[*fleet.Bundle, error] {
	return func(yield func(*fleet.Bundle, error) bool) {
		for _, at := range s.bundles {
			text := make([]byte, at.size)
			_, err := s.file.ReadAt(text, at.from)
			var b *fleet.Bundle
			if err == nil {
				b, err = fleet.Parse(text)
			}
			if err != nil {
				err = fmt.Errorf("reading a bundle back: %w", err)
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}
