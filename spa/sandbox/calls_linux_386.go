package sandbox

import "golang.org/x/sys/unix"

var (
	mmaps        = []uintptr{unix.SYS_MMAP2}
	runtimeCalls = calls(unix.SYS_EPOLL_WAIT, unix.SYS_POLL, unix.SYS_FUTEX_TIME64, unix.SYS_CLOCK_GETTIME64,
		unix.SYS_CLOCK_NANOSLEEP_TIME64, unix.SYS_SIGRETURN, unix.SYS_SET_THREAD_AREA) // the last one by each new thread
	daemonCalls = append(calls(unix.SYS_FSTAT64, unix.SYS_FSTATAT64,
		unix.SYS__LLSEEK, unix.SYS_PPOLL_TIME64,
		unix.SYS_GETUID32, unix.SYS_GETEUID32, unix.SYS_GETGID32, unix.SYS_GETEGID32),
		append(onDescriptors(unix.SYS_FCNTL64), ofSockets...)...)
	keeperCalls  = append(calls(unix.SYS_FSTAT64), onDescriptors(unix.SYS_FCNTL64)...)
	programCalls = calls(unix.SYS_OPEN, unix.SYS_STAT64, unix.SYS_LSTAT64, unix.SYS_ACCESS,
		unix.SYS_READLINK, unix.SYS_UNLINK,
		unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_PIPE, unix.SYS_DUP2, unix.SYS__NEWSELECT,
		unix.SYS_GETPGRP, unix.SYS_UGETRLIMIT,
		unix.SYS_GETRLIMIT, unix.SYS_STATFS64, unix.SYS_FSTATFS64, unix.SYS_FTRUNCATE64, unix.SYS_TIME,
		unix.SYS_SOCKETCALL)

	// ofSockets are the operations of socketcall that make no new socket: numbers from linux/net.h.
	ofSockets = parts(unix.SYS_SOCKETCALL,
		6, 7, // getsockname, getpeername
		9, 10, 11, 12, 13, 14, 15, // send, recv, sendto, recvfrom, shutdown, setsockopt, getsockopt
		16, 17, 18) // sendmsg, recvmsg, accept4
)

// parts allows these values of a call's first argument.
func parts(number uintptr, values ...uint32) []call {
	list := make([]call, len(values))
	for i, value := range values {
		list[i] = call{number, 0, 1<<32 - 1, value}
	}
	return list
}
