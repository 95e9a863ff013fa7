package place

import (
	"errors"
	"fmt"
)

// ErrFull means that there is no space to write a file, not even over the old one, which is unchanged.
var ErrFull = errors.New("no space left to write it, not even in place")

// Overwrite replaces an existing file that says before, for a caller that holds the directory's lock. If there is no
// space for a new file it rewrites the old one in place, within the space that it has: a revocation must not wait for
// space. A power cut in the middle of that leaves a bad file, which shuts its client out.
func Overwrite(path string, before, after []byte) error {
	err := WriteLocked(path, after, OnlyOver, ForService)
	if err == nil || !isFull(err) {
		return err
	}
	if err := rewrite(path, before, after); err != nil {
		return fmt.Errorf("%s: %w (%w)", path, ErrFull, err)
	}
	return nil
}
