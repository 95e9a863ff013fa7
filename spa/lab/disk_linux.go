package lab

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// mostFilled is the most that FillDisk writes: it is for small file systems that a test has mounted.
const mostFilled = 128 << 20

// FillDisk uses up the remaining space on the file system of path, with a new file there.
func FillDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	syscall.Sync() // delayed writes take their space now
	n := 0
	for _, size := range []int{64 << 10, 4 << 10, 1 << 10, 1} {
		for err = nil; err == nil; n += size {
			if n > mostFilled {
				return fmt.Errorf("lab: %s is on no small file system", path)
			}
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
	}
	return nil
}
