package keys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sallyport/keys/service"
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

// Sweep removes what programs that were killed left beside dir/NAME.toml: files of hidden names with
// the keys that it failed to write. Without a name it does so for all of the directory. It returns how
// many there were. No directory is no error.
func Sweep(dir, name string) (int, error) {
	unlock, err := lockDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer unlock() // before it, another program may be about to move its own
	if name == "" {
		return sweep(dir, "")
	}
	if err := service.ValidName(name); err != nil {
		return 0, err
	}
	return sweep(dir, name+Suffix)
}

// sweep is Sweep for a caller that has the lock, and for a file of any name; empty: of any with Suffix.
func sweep(dir, file string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("looking for files that were left: %w", err)
	}
	n := 0
	var errs []error
	for _, e := range entries {
		of := besideOf(e.Name())
		if !e.Type().IsRegular() || of == "" || file != of && (file != "" || !strings.HasSuffix(of, Suffix)) {
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
