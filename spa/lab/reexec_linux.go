package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"
)

// inside is set in the environment of a process that Reexec started, so that it does not try again if its namespace
// turns out to be useless.
const inside = "SALLYPORT_LAB"

// Main runs a package's tests, for an ordinary user through [Reexec]. If namespaces are unavailable, the tests that
// need them report that: see [NeedNamespaces].
func Main(m *testing.M) {
	Become()
	_ = Reexec() // the test that needs it finds and reports what is missing
	os.Exit(m.Run())
}

// Reexec returns nil if this process can make network namespaces. Otherwise it runs the program again with the same
// arguments as root of a new user, network and mount namespace, passes signals on, waits for it and exits with its exit
// code. If that is not allowed either, it returns an error that says what to do.
func Reexec() error {
	err := probe()
	if err == nil {
		return nil
	}
	if os.Getenv(inside) != "" {
		return unavailable(err)
	}
	cmd := again()
	runtime.LockOSThread() // the child asks to be killed when this thread ends
	if err := cmd.Start(); err != nil {
		runtime.UnlockOSThread()
		return unavailable(err)
	}
	os.Exit(await(cmd))
	return nil
}

// probe makes a host and closes it.
func probe() error {
	h, err := NewHost("probe")
	if err != nil {
		return err
	}
	return h.Close()
}

func again() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	return cmd
}

// await passes signals on until the child has ended, and returns its exit code.
func await(cmd *exec.Cmd) int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended by now
		}
	}()
	var exit *exec.ExitError
	err := cmd.Wait()
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab: the process in the user namespace:", err)
		return 1
	}
	return 0
}

func unavailable(err error) error {
	return fmt.Errorf("%w: network namespaces need root (with CAP_SYS_ADMIN) or unprivileged user namespaces; "+
		"look at the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and "+
		"kernel.apparmor_restrict_unprivileged_userns", err)
}
