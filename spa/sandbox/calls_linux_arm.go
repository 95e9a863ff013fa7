package sandbox

import "golang.org/x/sys/unix"

// armPrivate is the base of this architecture's private calls (asm/unistd.h), which a filter sees too.
const armPrivate = 0x0f0000

var (
	mmaps        = []uintptr{unix.SYS_MMAP2}
	runtimeCalls = calls(unix.SYS_EPOLL_WAIT, unix.SYS_POLL, unix.SYS_FUTEX_TIME64, unix.SYS_CLOCK_GETTIME64,
		unix.SYS_CLOCK_NANOSLEEP_TIME64, unix.SYS_SIGRETURN, armPrivate+2, armPrivate+5) // cacheflush, set_tls
	daemonCalls = append(calls(unix.SYS_FSTAT64, unix.SYS_FSTATAT64, unix.SYS__LLSEEK, unix.SYS_PPOLL_TIME64,
		unix.SYS_SEND, unix.SYS_RECV, unix.SYS_GETUID32, unix.SYS_GETEUID32, unix.SYS_GETGID32, unix.SYS_GETEGID32),
		onDescriptors(unix.SYS_FCNTL64)...)
	keeperCalls  = append(calls(unix.SYS_FSTAT64), onDescriptors(unix.SYS_FCNTL64)...)
	programCalls = calls(unix.SYS_OPEN, unix.SYS_STAT64, unix.SYS_LSTAT64, unix.SYS_ACCESS,
		unix.SYS_READLINK, unix.SYS_UNLINK,
		unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_PIPE, unix.SYS_DUP2, unix.SYS__NEWSELECT,
		unix.SYS_GETPGRP, unix.SYS_UGETRLIMIT,
		unix.SYS_STATFS64, unix.SYS_FSTATFS64, unix.SYS_FTRUNCATE64)
)
