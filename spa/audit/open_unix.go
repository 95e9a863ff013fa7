//go:build unix

package audit

import (
	"io/fs"
	"syscall"
)

// noFollow refuses a symbolic link, which anyone who can write in the directory could point anywhere, and does not
// wait for the reader of a pipe.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// links returns the number of the file's hard links.
func links(info fs.FileInfo) uint64 {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 1
	}
	return uint64(stat.Nlink)
}

// ofRoot reports whether a file belongs to root.
func ofRoot(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Uid == 0
}
