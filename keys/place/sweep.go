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

// What a file is called beside the one in whose place it comes: .NAME.XXXXXXXXXX.tmp
const (
	besideRandom = 10
	besideEnd    = ".tmp"
)

// beside is a new name for a file that will come to path's place.
func beside(path string) string {
	dir, base := filepath.Split(path)
	return dir + "." + base + "." + rand.Text()[:besideRandom] + besideEnd
}

// besideOf returns the file in whose place one of this name was to come; empty: in none's.
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

// Sweep removes what programs that were killed left in dir beside files of the names that match: files of
// hidden names with the secrets that they failed to write. It returns how many there were. No directory is
// no error.
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

// sweep is Sweep for a caller that has the lock.
func sweep(dir string, match func(file string) bool) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("looking for files that were left: %w", err)
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
		return n, fmt.Errorf("removing what a program that was killed has left: %w", err)
	}
	return n, nil
}
