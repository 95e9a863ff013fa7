package sandbox

import (
	"os"

	"golang.org/x/sys/unix"
)

// calls returns calls that are allowed with any arguments.
func calls(numbers ...uintptr) []call {
	list := make([]call, len(numbers))
	for i, number := range numbers {
		list[i].number = number
	}
	return list
}

// onDescriptors returns the commands of fcntl for descriptors and locks, and those that only Linux has. Others make the
// kernel send a signal of any number to another process of the user (F_SETOWN, F_SETSIG, F_SETOWN_EX).
func onDescriptors(number uintptr) []call {
	return []call{{number, 1, ^uint32(7), 0}, {number, 1, ^uint32(1023), 1024},
		{number, 1, ^uint32(1), 12}, {number, 1, ^uint32(0), 14}} // F_GETLK64 to F_SETLKW64, of 32 bits
}

// namespaces are the flags of clone that make one.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// forAnyProgram returns the calls of Go's runtime, and of a C library's threads: memory that is not executable, threads
// but no processes, signals to oneself.
func forAnyProgram() []call {
	pid := uint32(os.Getpid())
	list := calls(
		unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_RESTART_SYSCALL,
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE,
		unix.SYS_PREAD64, // the last one for the limits of a control group
		unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_CREATE1, unix.SYS_EVENTFD2,
		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_BRK,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
		unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_SCHED_GETAFFINITY,
		unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
		unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, unix.SYS_GETRANDOM,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	)
	list = append(append(list, runtimeCalls...), onDescriptors(unix.SYS_FCNTL)...)
	for _, number := range mmaps {
		list = append(list, call{number, 2, unix.PROT_EXEC, 0})
	}
	return append(list,
		call{unix.SYS_MPROTECT, 2, unix.PROT_EXEC, 0},
		call{unix.SYS_CLONE, 0, unix.CLONE_THREAD | namespaces, unix.CLONE_THREAD},
		call{unix.SYS_TGKILL, 0, 1<<32 - 1, pid},
		call{unix.SYS_KILL, 0, 1<<32 - 1, pid},
		call{unix.SYS_PRCTL, 0, 1<<32 - 1, unix.PR_SET_VMA}, // names memory
	)
}

// forDaemon returns the calls of the daemon: open, inspect and read files, append to a log, remove its socket, and use
// its sockets, but make no new ones.
func forDaemon() []call {
	list := append(forAnyProgram(), calls(
		unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_LSEEK,
		unix.SYS_FSTAT, unix.SYS_STATX, unix.SYS_PWRITE64, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FLOCK,
		unix.SYS_UNLINKAT, unix.SYS_GETCWD, unix.SYS_INOTIFY_RM_WATCH,
		unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
		unix.SYS_PPOLL, unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN,
		unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_RECVFROM, unix.SYS_RECVMSG,
		unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
		unix.SYS_WAIT4, unix.SYS_WAITID, // for its helper and its keeper
		unix.SYS_MEMBARRIER, unix.SYS_TIMERFD_SETTIME,
	)...)
	list = append(list, call{unix.SYS_FALLOCATE, 1, 1<<32 - 1, 0}) // the journal grows
	return append(list, daemonCalls...)
}

// forPrograms returns the calls of iptables, its loader, a shell around it, and Go's way to start them. They can make
// processes but no namespaces, and signal only processes that this process has started.
func forPrograms() []call {
	list := append(forDaemon(), calls(
		unix.SYS_EXECVE, unix.SYS_MPROTECT, unix.SYS_MREMAP, unix.SYS_SET_TID_ADDRESS, unix.SYS_PRLIMIT64, unix.SYS_UNAME,
		unix.SYS_PIPE2, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_CHDIR, unix.SYS_UMASK, unix.SYS_SETPGID, unix.SYS_SETSID,
		unix.SYS_GETPPID, unix.SYS_GETPGID, unix.SYS_GETGROUPS, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_FTRUNCATE,
		unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_PSELECT6,
		unix.SYS_SOCKETPAIR, unix.SYS_BIND, unix.SYS_CONNECT, unix.SYS_SENDMMSG, unix.SYS_RECVMMSG,
		unix.SYS_CAPGET, unix.SYS_CAPSET, unix.SYS_GETRUSAGE, unix.SYS_TIMES, unix.SYS_SYSINFO,
		unix.SYS_PIDFD_SEND_SIGNAL, // to its children only: pidfd_open is not in the list
	)...)
	for _, number := range mmaps {
		list = append(list, call{number: number})
	}
	list = append(list,
		call{unix.SYS_CLONE, 0, namespaces, 0},
		call{unix.SYS_SOCKET, 0, 1<<32 - 1, unix.AF_NETLINK},
		call{unix.SYS_SOCKET, 0, 1<<32 - 1, unix.AF_INET}, // the older kind of iptables
		call{unix.SYS_SOCKET, 0, 1<<32 - 1, unix.AF_INET6},
		call{unix.SYS_SOCKET, 0, 1<<32 - 1, unix.AF_UNIX}, // a C library looking for a name service
		call{unix.SYS_PRCTL, 0, 1<<32 - 1, unix.PR_SET_PDEATHSIG},
		call{unix.SYS_PRCTL, 0, 1<<32 - 1, unix.PR_SET_NAME},
	)
	if !hasPidfd() {
		list = append(list, call{number: unix.SYS_KILL})
	}
	return append(list, programCalls...)
}

// hasPidfd reports whether a program can be killed through its descriptor, as since Linux 5.4.
func hasPidfd() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// forKeeper returns the calls of a process that waits on two descriptors and locks a third.
func forKeeper() []call {
	return append(append(forAnyProgram(), calls(unix.SYS_FSTAT, unix.SYS_STATX)...), keeperCalls...)
}

// never are calls that only an attacker makes.
var never = []uintptr{
	unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE,
	unix.SYS_PIDFD_GETFD, unix.SYS_KCMP, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_FSOPEN,
	unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD,
	unix.SYS_REBOOT, unix.SYS_SWAPON,
}

// neverOf returns never, and the calls to start programs unless the process needs them.
func neverOf(programs bool) []uintptr {
	if programs {
		return never
	}
	return append([]uintptr{unix.SYS_EXECVE}, never...)
}
