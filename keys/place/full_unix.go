//go:build unix

package place

import (
	"bytes"
	"errors"
	"io"
	"os"
	"syscall"
)

// isFull reports whether an error means that the disk, or the user's quota, is full.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// rewrite replaces the text of a file in place, or leaves it unchanged. A file that does not say before is another one:
// any user who can write in the directory may have put it there.
func rewrite(path string, before, after []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if now, err := io.ReadAll(io.LimitReader(f, int64(len(before))+1)); err != nil || !bytes.Equal(now, before) {
		return errors.Join(errors.New("it has changed in the meantime"), err)
	}
	if err := f.Sync(); err != nil { // only then are its blocks known
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	const block = 512 // stat(2)
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int64(len(after)) > block*int64(st.Blocks) {
		return syscall.ENOSPC
	}
	if err := fillInPlace(f, after); err != nil {
		return errors.Join(err, fillInPlace(f, before))
	}
	return nil
}

func fillInPlace(f *os.File, text []byte) error {
	if _, err := f.WriteAt(text, 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(text))); err != nil {
		return err
	}
	return f.Sync()
}
