package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// NeedNamespaces skips the test if network namespaces are unavailable; if CI is set it fails.
func NeedNamespaces(t testing.TB) {
	t.Helper()
	if err := probe(); err != nil {
		Skip(t, unavailable(err).Error())
	}
}

// NeedRoot skips the test unless it runs as the machine's real root, which can become any user; root of a user
// namespace cannot. If CI is set it fails.
func NeedRoot(t testing.TB) {
	t.Helper()
	uids := Value(os.ReadFile("/proc/self/uid_map"))(t)
	if os.Geteuid() != 0 || strings.Join(strings.Fields(string(uids)), " ") != "0 0 4294967295" {
		Skip(t, NotRoot)
	}
}

// New makes hosts that are closed with the test. It calls NeedNamespaces.
func New(t testing.TB, names ...string) []*Host {
	t.Helper()
	NeedNamespaces(t)
	hosts := make([]*Host, len(names))
	for i, name := range names {
		h := Value(NewHost(name))(t)
		hosts[i] = h
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return hosts
}

// NeedOwnRoot skips the test if user namespaces are unavailable or mounts cannot be kept to one process, as in a
// chroot.
func NeedOwnRoot(t testing.TB) {
	t.Helper()
	if err := ownRoot(); err != nil {
		t.Log(err)
		Skip(t, "needs user namespaces and a root of its own, not a chroot")
	}
}

var ownRoot = sync.OnceValue(func() error {
	ids := []syscall.SysProcIDMap{{HostID: 0, Size: 1}}
	for _, attr := range []*syscall.SysProcAttr{
		{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids},
		{Unshareflags: syscall.CLONE_NEWNS},
	} {
		cmd := exec.Command("/bin/sh", "-c", ":")
		cmd.SysProcAttr = attr
		if err := cmd.Run(); err != nil && os.Geteuid() == 0 {
			return err
		}
	}
	return nil
})

// Pair makes two hosts joined by a cable: the client's end is vc, with 192.0.2.2 to 192.0.2.9 (/24) and 2001:db8::2/64;
// the gateway's is vs, with 192.0.2.1/24 and 2001:db8::1/64.
func Pair(t testing.TB) (client, gateway *Host) {
	t.Helper()
	hosts := New(t, "client", "gateway")
	client, gateway = hosts[0], hosts[1]
	Must(t, Link(client, "vc", gateway, "vs"))
	for i := 2; i <= 9; i++ {
		Must(t, client.AddAddr("vc", fmt.Sprintf("192.0.2.%d/24", i)))
	}
	Must(t, client.AddAddr("vc", "2001:db8::2/64"))
	Must(t, gateway.AddAddr("vs", "192.0.2.1/24"))
	Must(t, gateway.AddAddr("vs", "2001:db8::1/64"))
	return client, gateway
}

// AsUser runs do on its own thread, which has become the user but keeps its group.
func AsUser(t *testing.T, uid int, do func() error) error {
	t.Helper()
	become := func(effective int) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(effective), uintptr(effective), 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	become(uid)
	defer become(0) // a process with threads of several users is killed when it changes all of them
	return do()
}
