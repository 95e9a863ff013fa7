package sandbox

import (
	"encoding/binary"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// alone is a user that does not exist, in a namespace where the process keeps its user: changing the user would remove
// capabilities and dumpable as a side effect.
const alone = "no-such-user"

// anyArg is for calls that lie for any first argument.
const anyArg = -1

// TestDropBelievesNobody makes the kernel report success for one step of the drop without doing it. Whichever step it
// is, reading back detects it.
func TestDropBelievesNobody(t *testing.T) {
	lab.NeedRoot(t)
	lab.NeedOwnRoot(t)
	for _, test := range []struct {
		name, user string
		call, arg  int
		want       string
	}{
		{"setuid", "nobody", unix.SYS_SETUID, anyArg, "Uid is"},
		{"setgid", "nobody", unix.SYS_SETGID, anyArg, "Gid is"},
		{"setgroups", "nobody", setGroupsCall, anyArg, "Groups is"},
		{"capset", alone, unix.SYS_CAPSET, anyArg, "CapPrm is"},
		{"bounding set", "nobody", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, "CapBnd is"},
		{"securebits", "nobody", unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, "securebits are"},
		{"no_new_privs", "nobody", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, "NoNewPrivs is"},
		{"dumpable", alone, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, "dumpable is"},
		{"Landlock", "nobody", unix.SYS_LANDLOCK_RESTRICT_SELF, anyArg, "/ can still be opened"},
		{"filter", "nobody", unix.SYS_SECCOMP, anyArg, "the mode of seccomp is"},
	} {
		if test.name == "Landlock" && noLandlock() != nil || test.name == "filter" && noFilter() != nil {
			continue
		}
		cmd := helper(t, "drop under a liar", test.user)
		cmd.Env = append(cmd.Env, fmt.Sprintf("SANDBOX_CALL=%d", test.call), fmt.Sprintf("SANDBOX_ARG=%d", test.arg))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{4, 5}}}
		if test.user == alone {
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{Size: 1}},
			}
		}
		r := run(t, cmd)
		if !strings.Contains(r.Err, test.want) || !equal(r.State, State{}) {
			t.Errorf("%s: got %+v, %q, want %q", test.name, r.State, r.Err, test.want)
		}
	}
}

// lie makes a system call do nothing and return an error, or 0 for success, on all threads: a seccomp filter that
// answers with this error number. See seccomp(2).
func lie(call, arg int, answer unix.Errno) error {
	const number, arguments = 0, 16 // offsets in struct seccomp_data
	firstArgument := uint32(arguments)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		firstArgument += 4 // its lower half
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(call), Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: firstArgument},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(arg), Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(answer)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if arg == anyArg {
		filter[3].Jf = 0
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	return nil
}
