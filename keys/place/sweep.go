package place

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A file that will replace NAME is written as .NAME.XXXXXXXXXX.tmp.
const (
	besideRandom = 10
	besideEnd    = ".tmp"
)

// beside returns a new name for the file that will replace path.
func beside(path string) string {
	dir, base := filepath.Split(path)
	return dir + "." + base + "." + rand.Text()[:besideRandom] + besideEnd
}

// besideOf returns the file that one of this name would replace, or "".
func besideOf(name string) string {
	inner, isEnd := strings.CutSuffix(name, besideEnd)
	inner, isHidden := strings.CutPrefix(inner, ".")
	dot := len(inner) - besideRandom - 1
	if !isEnd || !isHidden || dot < 1 || inner[dot] != '.' {
		return ""
	}
	if strings.Trim(inner[dot+1:], "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
		return ""
	}
	return inner[:dot]
}

// Sweep removes the hidden files that killed programs left in dir, with the secrets that they failed to write, beside
// files whose names match. It returns their number. A missing directory is no error.
func Sweep(dir string, match func(file string) bool) (int, error) {
	unlock, err := Lock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer unlock() // before it, another program may be about to move its own
	return sweep(dir, match)
}

// sweep is Sweep for a caller that holds the lock.
func sweep(dir string, match func(file string) bool) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("looking for leftover files: %w", err)
	}
	n := 0
	var errs []error
	for _, e := range entries {
		of := besideOf(e.Name())
		if !e.Type().IsRegular() || of == "" || !match(of) {
			continue
		}
		err := os.Remove(filepath.Join(dir, e.Name()))
		if err == nil {
			n++
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return n, fmt.Errorf("removing the leftovers of a killed program: %w", err)
	}
	return n, nil
}
