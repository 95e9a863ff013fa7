package sandbox

import "golang.org/x/sys/unix"

var (
	mmaps        = []uintptr{unix.SYS_MMAP}
	runtimeCalls = calls(unix.SYS_EPOLL_WAIT, unix.SYS_POLL)
	daemonCalls  = calls(unix.SYS_NEWFSTATAT)
	keeperCalls  = []call(nil)
	programCalls = calls(unix.SYS_OPEN, unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_ACCESS, unix.SYS_READLINK, unix.SYS_UNLINK,
		unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_PIPE, unix.SYS_DUP2, unix.SYS_SELECT, unix.SYS_GETPGRP, unix.SYS_GETRLIMIT,
		unix.SYS_ARCH_PRCTL, unix.SYS_TIME)
)
