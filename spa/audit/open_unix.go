//go:build unix

package audit

import "syscall"

// noFollow refuses a symbolic link, which whoever may write in the directory could lead anywhere,
// and does not wait for the reader of a pipe.
const noFollow = syscall.O_NOFOLLOW | syscall.O_NONBLOCK
