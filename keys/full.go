package keys

import (
	"errors"
	"fmt"
)

// ErrFull is returned where a file cannot be written because there is no space left, also not over the one that
// is there, which is as it was.
var ErrFull = errors.New("there is no space left to write it, not even in its place")

// placeOver is placeAlone over an existing file that says before. Where there is no space for a new file it is
// written in place, as long as it needs no more space than it has: a revocation must not wait for space. A power
// cut in the middle of that leaves a file that is bad, and shuts its client out.
func placeOver(path string, before, after []byte) error {
	err := placeAlone(path, after, onlyOver, forService)
	if err == nil || !isFull(err) {
		return err
	}
	if err := rewrite(path, before, after); err != nil {
		return fmt.Errorf("%s: %w (%w)", path, ErrFull, err)
	}
	return nil
}
