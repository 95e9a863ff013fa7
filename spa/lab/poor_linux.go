package lab

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lacks lists, in the environment of this program when it must become another one, the system calls that the kernel
// should lack for it.
const lacks = "SALLYPORT_LAB_LACKING"

// Lacking makes the command and its children run as on a kernel that lacks these system calls. What [See] requires of
// the test's program applies here too.
func Lacking(cmd *exec.Cmd, calls ...int) *exec.Cmd {
	list := strings.Trim(fmt.Sprint(calls), "[]")
	cmd.Args = append([]string{os.Args[0], cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/proc/self/exe"
	cmd.Env = append(cmd.Environ(), lacks+"="+list)
	return cmd
}

// lack runs the command in place of this program, under a filter that fails these system calls with ENOSYS
// (seccomp(2)).
func lack(calls []string) error {
	filter := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}}
	for _, call := range calls {
		number, err := strconv.ParseUint(call, 10, 32)
		if err != nil {
			return err
		}
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(number), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	}
	filter = append(filter, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	return unix.Exec(os.Args[1], os.Args[1:], os.Environ())
}
