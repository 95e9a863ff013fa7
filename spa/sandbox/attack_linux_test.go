package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// errNothingGained is a program that ran without any privilege.
var errNothingGained = errors.New("nothing gained")

// attack is something that only a privileged process can do.
type attack struct {
	name string
	try  func() error
}

// attacks are tried on a locked thread of the process that has dropped. dir is prepared by
// prepare; victim is a process of the parent's user with the parent's capabilities.
func attacks(dir string, victim int) []attack {
	in := func(name string) string { return filepath.Join(dir, name) }
	return []attack{
		{"setuid", func() error { return raw(unix.SYS_SETUID, 0) }},
		{"setgid", func() error { return raw(unix.SYS_SETGID, 0) }},
		{"setgroups", func() error { return raw(unix.SYS_SETGROUPS, 0, 0) }},
		{"raise effective", func() error { return capset(func(d *unix.CapUserData) { d.Effective |= 1 << cap.SETUID }) }},
		{"raise permitted", func() error { return capset(func(d *unix.CapUserData) { d.Permitted |= 1 << cap.SETUID }) }},
		{"raise inheritable", func() error { return capset(func(d *unix.CapUserData) { d.Inheritable |= 1 << cap.NET_ADMIN }) }},
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
		{"ptrace", func() error { return traces(victim) }},
		{"packet socket", func() error { return socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0) }},
		{"raw socket", func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
		{"mount", func() error { return mounts(dir) }},
	}
}

// raw is the calling thread's own system call: package syscall would change all threads.
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

// raiseAmbient hands CAP_NET_ADMIN on to whatever is executed next, and takes it back.
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
	data[0].Inheritable &^= 1 << cap.NET_ADMIN // takes the ambient one along
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
	got, err := parseTask(string(out))
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
			runtime.LockOSThread() // and never unlocked: the thread ends with it
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
