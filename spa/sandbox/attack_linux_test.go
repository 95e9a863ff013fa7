package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// errNothingGained means that a program ran without privileges.
var errNothingGained = errors.New("nothing gained")

// attack is something that only a privileged process can do.
type attack struct {
	name string
	try  func() error
}

// attacks are tried on a locked thread of the process after the drop. dir is made by prepare; victim is a process of
// the parent's user with the parent's capabilities. The kernel refuses them only because the process lacks privileges.
func attacks(dir string, victim int) []attack {
	in := func(name string) string { return filepath.Join(dir, name) }
	return []attack{
		{"setuid", func() error { return raw(unix.SYS_SETUID, 0) }},
		{"setgid", func() error { return raw(unix.SYS_SETGID, 0) }},
		{"setgroups", func() error { return raw(unix.SYS_SETGROUPS, 0, 0) }},
		{"raise effective", func() error { return capset(func(d *unix.CapUserData) { d.Effective |= 1 << cap.SETUID }) }},
		{"raise permitted", func() error { return capset(func(d *unix.CapUserData) { d.Permitted |= 1 << cap.SETUID }) }},
		{"raise inheritable",
			func() error { return capset(func(d *unix.CapUserData) { d.Inheritable |= 1 << cap.NET_ADMIN }) }},
		{"raise ambient", raiseAmbient},
		{"bounding set", boundingSet},
		{"securebits", func() error { return raw(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 0) }},
		{"open", func() error { return opens(in("file")) }},
		{"chmod", func() error { return os.Chmod(in("file"), 0o666) }},
		{"chown", func() error { return os.Chown(in("file"), os.Getuid()+1, -1) }},
		{"create", func() error { return os.WriteFile(in("new"), nil, 0o600) }},
		{"exec file", func() error { return gains(in("plain")) }},
		{"exec set-user-id", func() error { return gains(in("setuid")) }},
		{"exec file capabilities", func() error { return gains(in("filecaps")) }},
		{"packet socket", func() error { return socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0) }},
		{"raw socket", func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
	}
}

// unfiltered are attacks that the kernel refuses for lack of privileges if no filter kills the process first: see
// fatal.
func unfiltered(dir string, victim int) []attack {
	return []attack{
		{"ptrace", func() error { return traces(victim) }},
		{"mount", func() error { return mounts(dir) }},
	}
}

// escapes are attacks that need no privileges: without Landlock or the filter they succeed.
func escapes(dir string, victim int) []attack {
	in := func(name string) string { return filepath.Join(dir, name) }
	return []attack{
		{"file: read what anybody may", func() error { return opens("/etc/passwd") }},
		{"file: list a directory", func() error { _, err := os.ReadDir("/"); return err }},
		{"file: look into a process", func() error { return opens("/proc/self/maps") }},
		{"file: write memory", func() error { return openFor("/proc/self/mem", os.O_RDWR) }},
		{"file: write what anybody may", func() error { return openFor(in("open"), os.O_WRONLY) }},
		{"file: truncate what anybody may", func() error { return openFor(in("open"), os.O_WRONLY|os.O_TRUNC) }},
		{"file: write a configuration", func() error { return openFor(in("read/file"), os.O_WRONLY) }},
		{"file: make one", func() error { return openFor(in("anybodys/new"), os.O_WRONLY|os.O_CREATE) }},
		{"file: make one beside a configuration", func() error { return openFor(in("read/new"), os.O_WRONLY|os.O_CREATE) }},
		{"file: remove a configuration", func() error { return unlinks(in("read")) }},
		{"file: make a directory", func() error { return undo(unix.Mkdir(in("write/dir"), 0o700), in("write/dir")) }},
		{"file: make a link", func() error { return undo(unix.Symlink("/etc/passwd", in("write/link")), in("write/link")) }},
		{"file: make a pipe with a name", func() error {
			return undo(unix.Mkfifo(in("write/pipe"), 0o600),
				in("write/pipe"))
		}},
		{"call: start a process", func() error { return forks() }},
		{"call: socket", func() error { return socket(unix.AF_INET, unix.SOCK_STREAM, 0) }},
		{"call: socket of this host", func() error { return socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) }},
		{"call: netlink socket", func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE) }},
		{"call: make memory executable", func() error { return executable() }},
		{"call: map executable memory", func() error { return mapsCode() }},
		{"call: be dumpable", func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }},
		{"call: change a mode", func() error { return unix.Chmod(in("write/file"), 0o666) }},
		{"call: rename", func() error { return unix.Rename(in("write/file"), in("write/file")) }},
		{"call: signal to another", func() error { return unix.Kill(victim, 0) }},
		{"call: signal to another's thread", func() error { return unix.Tgkill(victim, victim, 0) }},
		{"call: signal to another by a descriptor",
			func() error { return raw(unix.SYS_FCNTL, 2, unix.F_SETOWN, uintptr(victim)) }},
		{"call: signal to another by a descriptor, in the longer form", func() error {
			owner := [2]int32{1, int32(victim)} // struct f_owner_ex of fcntl.h: F_OWNER_PID
			return raw(unix.SYS_FCNTL, 2, unix.F_SETOWN_EX, uintptr(unsafe.Pointer(&owner)))
		}},
		{"call: signal of any number by a descriptor",
			func() error { return raw(unix.SYS_FCNTL, 2, unix.F_SETSIG, uintptr(unix.SIGKILL)) }},
		{"call: descriptor of another", func() error { return pidfd(victim) }},
		{"call: limits", func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) }},
	}
}

// openFor opens a file with these flags.
func openFor(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// undo removes what an attack has made.
func undo(err error, path string) error {
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// gone returns the name of a file for one thread to remove.
func gone(i int) string { return fmt.Sprintf("gone-%d", i) }

// unlinks removes the first existing file.
func unlinks(dir string) error {
	for i := range allThreads {
		if err := unix.Unlink(filepath.Join(dir, gone(i))); err != unix.ENOENT {
			return err
		}
	}
	return unix.ENOENT
}

// forks makes a process that exits at once, through the bare call: package os would make pipes first.
func forks() error {
	flags, stack := uintptr(unix.SIGCHLD), uintptr(0)
	if runtime.GOARCH == "s390x" {
		flags, stack = stack, flags // see clone(2)
	}
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags, stack, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	_, err := unix.Wait4(int(pid), nil, 0, nil)
	return err
}

// executable maps memory that is writable and executable.
func executable() error {
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	return errors.Join(unix.Mprotect(memory, unix.PROT_READ|unix.PROT_EXEC), unix.Munmap(memory))
}

func mapsCode() error {
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	return unix.Munmap(memory)
}

func pidfd(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// fatal are system calls that kill the process.
var fatal = map[string]func() error{
	"execve":              func() error { return raw(unix.SYS_EXECVE) },
	"execveat":            func() error { return raw(unix.SYS_EXECVEAT) },
	"ptrace":              func() error { return traces(os.Getppid()) },
	"process_vm_writev":   func() error { return raw(unix.SYS_PROCESS_VM_WRITEV, uintptr(os.Getppid())) },
	"bpf":                 func() error { return raw(unix.SYS_BPF) },
	"mount":               func() error { return mounts("/tmp") },
	"pivot_root":          func() error { return raw(unix.SYS_PIVOT_ROOT) },
	"new user namespace":  func() error { return raw(unix.SYS_UNSHARE, unix.CLONE_NEWUSER) },
	"another namespace":   func() error { return raw(unix.SYS_SETNS) },
	"keyctl":              func() error { return raw(unix.SYS_KEYCTL) },
	"add_key":             func() error { return raw(unix.SYS_ADD_KEY) },
	"module":              func() error { return raw(unix.SYS_FINIT_MODULE) },
	"io_uring":            func() error { return raw(unix.SYS_IO_URING_SETUP) },
	"perf_event_open":     func() error { return raw(unix.SYS_PERF_EVENT_OPEN) },
	"userfaultfd":         func() error { return raw(unix.SYS_USERFAULTFD) },
	"open_by_handle_at":   func() error { return raw(unix.SYS_OPEN_BY_HANDLE_AT) },
	"descriptor of other": func() error { return raw(unix.SYS_PIDFD_GETFD) },
}

// raw makes a system call on the calling thread: package syscall would change all threads.
func raw(call uintptr, args ...uintptr) error {
	var a [3]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall6(call, a[0], a[1], a[2], 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// capset changes the thread's capabilities, and back.
func capset(change func(*unix.CapUserData)) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before, after [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		return err
	}
	after = before
	change(&after[0])
	if after == before {
		return nil // has it already
	}
	if err := unix.Capset(&header, &after[0]); err != nil {
		return err
	}
	return unix.Capset(&header, &before[0])
}

// raiseAmbient passes CAP_NET_ADMIN on to the next executed program, and takes it back.
func raiseAmbient() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Inheritable |= 1 << cap.NET_ADMIN
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	raised := raw(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(cap.NET_ADMIN))
	data[0].Inheritable &^= 1 << cap.NET_ADMIN // also removes the ambient one
	return errors.Join(raised, unix.Capset(&header, &data[0]))
}

func boundingSet() error {
	for value := range cap.MaxBits() {
		if has, err := cap.GetBound(value); has || err != nil {
			return err
		}
	}
	return errNothingGained
}

func opens(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

func socket(domain, typ, proto int) error {
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func traces(pid int) error {
	if err := unix.PtraceAttach(pid); err != nil {
		return err
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		return err
	}
	return unix.PtraceDetach(pid)
}

func mounts(dir string) error {
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	return unix.Unmount(dir, 0)
}

// gains runs a program that prints its privileges, and returns nil if it has any.
func gains(path string) error {
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "SANDBOX_HELPER=whoami")
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	_, status, _ := strings.Cut(string(out), "\n")
	got, err := parseTask(status)
	if err != nil {
		return fmt.Errorf("%q: %w", out, err)
	}
	if got.uids[1] == os.Getuid() && got.allowed|got.effective|got.ambient|got.inheritable == 0 {
		return errNothingGained
	}
	return nil
}

// threads keeps n locked threads until go is closed, then runs f on each.
func threads(n int, start <-chan struct{}, f func(i int)) (wait func()) {
	ready, done := make(chan bool), make(chan bool)
	for i := range n {
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			ready <- true
			<-start
			f(i)
			done <- true
		}()
		<-ready
	}
	return func() {
		for range n {
			<-done
		}
	}
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}
