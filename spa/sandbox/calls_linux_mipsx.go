//go:build mips || mipsle

package sandbox

import "golang.org/x/sys/unix"

var (
	mmaps        = []uintptr{unix.SYS_MMAP, unix.SYS_MMAP2}
	runtimeCalls = calls(unix.SYS_EPOLL_WAIT, unix.SYS_POLL, unix.SYS_FUTEX_TIME64, unix.SYS_CLOCK_GETTIME64,
		unix.SYS_CLOCK_NANOSLEEP_TIME64, unix.SYS_SIGRETURN)
	daemonCalls = append(calls(unix.SYS_FSTAT64, unix.SYS_FSTATAT64, unix.SYS__LLSEEK, unix.SYS_PPOLL_TIME64,
		unix.SYS_SEND, unix.SYS_RECV),
		onDescriptors(unix.SYS_FCNTL64)...)
	keeperCalls  = append(calls(unix.SYS_FSTAT64), onDescriptors(unix.SYS_FCNTL64)...)
	programCalls = calls(unix.SYS_OPEN, unix.SYS_STAT64, unix.SYS_LSTAT64, unix.SYS_ACCESS,
		unix.SYS_READLINK, unix.SYS_UNLINK,
		unix.SYS_FORK, unix.SYS_PIPE, unix.SYS_DUP2, unix.SYS__NEWSELECT, unix.SYS_GETPGRP, unix.SYS_GETRLIMIT,
		unix.SYS_STATFS64, unix.SYS_FSTATFS64, unix.SYS_FTRUNCATE64, unix.SYS_SET_THREAD_AREA, unix.SYS_CACHEFLUSH)
)
