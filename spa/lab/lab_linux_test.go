package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const soon = Patience

func TestMain(m *testing.M) { Main(m) }

func TestPairConnects(t *testing.T) {
	client, gateway := Pair(t)
	echo := Value(EchoServer(gateway, ":22"))(t)
	if got := echo.Addr().Port(); got != 22 {
		t.Errorf("port: got %d, want 22", got)
	}
	for _, test := range []struct{ from, to string }{
		{"192.0.2.2", "192.0.2.1:22"},
		{"192.0.2.9:4000", "192.0.2.1:22"},
		{"2001:db8::2", "[2001:db8::1]:22"},
		{"", "192.0.2.1:22"},
	} {
		conn, err := Dial(client, test.from, test.to, soon)
		if err != nil {
			t.Errorf("from %q to %s: %v", test.from, test.to, err)
			continue
		}
		if err := Echoes(conn, "hello", soon); err != nil {
			t.Errorf("from %q to %s: %v", test.from, test.to, err)
		}
		if got := conn.LocalAddr().String(); !strings.HasPrefix(strings.Trim(got, "["), test.from) {
			t.Errorf("connected from %s, want %s", got, test.from)
		}
		conn.Close()
	}
}

func TestLinkLocalAddressIsGoodAtOnce(t *testing.T) {
	client, _ := Pair(t)
	Must(t, client.Do(func() error {
		own, err := linkLocal("vc")
		if err != nil {
			return err
		}
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: own, Zone: "vc"})
		if err != nil {
			return err
		}
		return conn.Close()
	}))
}

// TestLinkIsInOperation: before that the kernel drops packets, and a connection takes a second longer.
func TestLinkIsInOperation(t *testing.T) {
	for range 5 {
		client, gateway := Pair(t)
		for dev, h := range map[string]*Host{"vc": client, "vs": gateway} {
			Must(t, h.onLink(dev, func(l netlink.Link) error {
				if got := l.Attrs().OperState; got != netlink.OperUp {
					t.Errorf("%s is %s, want up", dev, got)
				}
				return nil
			}))
		}
	}
}

// linkLocal returns the IPv6 link-local address of an interface, or nil.
func linkLocal(name string) (net.IP, error) {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	addrs, err := dev.Addrs()
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP; ip.To4() == nil && ip.IsLinkLocalUnicast() {
			return ip, nil
		}
	}
	return nil, err
}

func TestRouterAndSwitch(t *testing.T) {
	hosts := New(t, "a", "switch", "router", "b")
	a, sw, router, b := hosts[0], hosts[1], hosts[2], hosts[3]
	Must(t, Link(a, "eth0", sw, "p0"))
	Must(t, Link(router, "eth0", sw, "p1"))
	Must(t, sw.Bridge("br0", "p0", "p1"))
	Must(t, Link(router, "eth1", b, "eth0"))
	Must(t, a.AddAddr("eth0", "192.0.2.2/24"))
	Must(t, a.AddAddr("eth0", "2001:db8:1::2/64"))
	Must(t, router.AddAddr("eth0", "192.0.2.1/24"))
	Must(t, router.AddAddr("eth0", "2001:db8:1::1/64"))
	Must(t, router.AddAddr("eth1", "198.51.100.1/24"))
	Must(t, router.AddAddr("eth1", "2001:db8:2::1/64"))
	Must(t, b.AddAddr("eth0", "198.51.100.2/24"))
	Must(t, b.AddAddr("eth0", "2001:db8:2::2/64"))
	Must(t, a.Route("default", "192.0.2.1"))
	Must(t, a.Route("2001:db8:2::/64", "2001:db8:1::1"))
	Must(t, b.Route("192.0.2.0/24", "198.51.100.1"))
	Must(t, b.Route("default", "2001:db8:2::1"))
	Must(t, router.Forward())
	_, err := EchoServer(b, ":80")
	Must(t, err)
	for _, to := range []string{"198.51.100.2:80", "[2001:db8:2::2]:80"} {
		conn, err := Dial(a, "", to, soon)
		if err != nil {
			t.Errorf("through the router: %v", err)
			continue
		}
		conn.Close()
	}
}

func TestInterfacesComeAndGo(t *testing.T) {
	h := New(t, "h")[0]
	Must(t, Link(h, "d0", h, "d1"))
	index, mac, err := h.Interface("d0")
	if err != nil || index == 0 || len(mac) != 6 {
		t.Errorf("got %d, %v, %v", index, mac, err)
	}
	Must(t, h.AddAddr("d0", "192.0.2.1/32"))
	Must(t, h.DelAddr("d0", "192.0.2.1/32"))
	Must(t, h.SetDown("d0"))
	Must(t, h.SetUp("d0"))
	Must(t, h.Delete("d0"))
	if _, _, err := h.Interface("d0"); err == nil {
		t.Error("deleted interface is still there")
	}
	if err := h.AddAddr("d0", "192.0.2.1/24"); err == nil || !strings.Contains(err.Error(),
		"host h: adding 192.0.2.1/24 to d0") {
		t.Errorf("got %v, want an error that says what was being done", err)
	}
}

func TestSysctlIsTheHostsOwn(t *testing.T) {
	hosts := New(t, "a", "b")
	Must(t, hosts[0].Sysctl("net.ipv4.ip_forward", "1"))
	Must(t, hosts[1].Sysctl("net.ipv4.ip_forward", "0"))
	for i, want := range []string{"1\n", "0\n"} {
		Must(t, hosts[i].Do(func() error {
			got, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
			if string(got) != want {
				t.Errorf("host %s: got %q, want %q", hosts[i].Name(), got, want)
			}
			return err
		}))
	}
}

func TestDoComesBack(t *testing.T) {
	hosts := New(t, "a", "b")
	before := namespace(t)
	var a, b, again string
	Must(t, hosts[0].Do(func() error {
		a = namespace(t)
		err := hosts[1].Do(func() error { b = namespace(t); return nil })
		again = namespace(t)
		return err
	}))
	if a == b || a == before || b == before || again != a {
		t.Errorf("outside %s, in a %s, in b %s, in a again %s", before, a, b, again)
	}
	func() {
		defer func() { _ = recover() }()
		_ = hosts[0].Do(func() error { panic("inside") })
	}()
	if after := namespace(t); after != before {
		t.Errorf("after a panic inside: in %s, want %s", after, before)
	}
	want := errors.New("of fn")
	if got := hosts[0].Do(func() error { return want }); got != want {
		t.Errorf("got %v, want fn's own error", got)
	}
}

func namespace(t *testing.T) string {
	t.Helper()
	ns := Value(os.Readlink("/proc/thread-self/ns/net"))(t)
	return ns
}

func TestProcessRunsInside(t *testing.T) {
	h := New(t, "h")[0]
	var inside string
	Must(t, h.Do(func() error { inside = namespace(t); return nil }))
	out := new(bytes.Buffer)
	cmd := helper("namespace")
	cmd.Stdout = out
	Must(t, h.Start(cmd))
	Must(t, cmd.Wait())
	if got := out.String(); got != inside {
		t.Errorf("process ran in %s, want %s", got, inside)
	}
}

func TestCloseKills(t *testing.T) {
	h, err := NewHost("h")
	if err != nil {
		NeedNamespaces(t)
		t.Fatal(err)
	}
	waited, cmd := helper("stay"), helper("stay")
	Must(t, h.Start(waited))
	Must(t, h.Start(cmd))
	waiter := make(chan error)
	go func() { waiter <- waited.Wait() }()
	Must(t, h.Close())
	Must(t, h.Close())
	for _, err := range []error{<-waiter, cmd.Wait()} {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("process ended with %v, want killed", err)
		}
	}
	if err := h.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Do: got %v, want ErrClosed", err)
	}
	if err := h.Start(helper("stay")); !errors.Is(err, ErrClosed) {
		t.Errorf("Start: got %v, want ErrClosed", err)
	}
	if err := h.SetUp("lo"); !errors.Is(err, ErrClosed) {
		t.Errorf("SetUp: got %v, want ErrClosed", err)
	}
}

// TestCloseKillsWhatWasLeftBehind: the pipe that a process inherited ends with the process.
func TestCloseKillsWhatWasLeftBehind(t *testing.T) {
	h := New(t, "h")[0]
	r, w, err := os.Pipe()
	Must(t, err)
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 &")
	cmd.ExtraFiles = []*os.File{w}
	Must(t, h.Start(cmd))
	w.Close()
	Must(t, cmd.Wait())
	Must(t, h.Close())
	Must(t, r.SetReadDeadline(time.Now().Add(soon)))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("what was left behind: got %v, want it to have ended", err)
	}
}

// TestDeathLeavesNothing kills a process that holds a host with a process in it, and checks that the inner one ends:
// its pipe ends.
func TestDeathLeavesNothing(t *testing.T) {
	NeedNamespaces(t)
	r, w, err := os.Pipe()
	Must(t, err)
	defer r.Close()
	cmd := helper("host")
	cmd.ExtraFiles = []*os.File{w}
	Must(t, cmd.Start())
	w.Close()
	first := make([]byte, 1)
	if _, err := io.ReadFull(r, first); err != nil {
		t.Fatalf("inner process: %v", err)
	}
	Must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	Must(t, r.SetReadDeadline(time.Now().Add(soon)))
	if _, err := r.Read(first); err != io.EOF {
		t.Errorf("got %v, want the inner process's end", err)
	}
}

func TestEchoServerEndsWithItsConnections(t *testing.T) {
	client, gateway := Pair(t)
	echo := Value(EchoServer(gateway, "192.0.2.1:7"))(t)
	conn := Value(Dial(client, "", "192.0.2.1:7", soon))(t)
	defer conn.Close()
	Must(t, Echoes(conn, "up", soon))
	Must(t, echo.Close())
	if err := Echoes(conn, "down", soon); err == nil {
		t.Error("connection echoes after the server's end")
	}
	if conn, err := Dial(client, "", "192.0.2.1:7", soon); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, %v, want refused", conn, err)
	}
}

// TestOrdinaryUser runs these tests again as a user who can make namespaces only in a user namespace. As an ordinary
// user they already run in one.
func TestOrdinaryUser(t *testing.T) {
	if os.Getenv(inside) != "" {
		return
	}
	NeedRoot(t)
	NeedOwnRoot(t)
	cmd := exec.Command("/proc/self/exe", "-test.v",
		"-test.skip=TestOrdinaryUser|TestNotRun") // which runs a script of the source that only root may be able to read
	cmd.Env = append(os.Environ(), "CI=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as uid 65534: %v\n%s", err, out)
	}
	for _, want := range []string{"PASS: TestPairConnects", "PASS: TestRouterAndSwitch", "PASS: TestSysctlIsTheHostsOwn"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("as uid 65534: no %q in\n%s", want, out)
		}
	}
}

// TestNoNamespacesAtAll: Reexec says what to do in a process that it has already started, where it must not try again,
// and if even user namespaces are refused.
func TestNoNamespacesAtAll(t *testing.T) {
	NeedNamespaces(t)
	NeedOwnRoot(t)
	again := helper("reexec")
	again.Env = append(again.Env, inside+"=1")
	again.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if os.Getenv(inside) != "" {
		again = nil // an ordinary user has no second one to become
	}
	refused := helper("refused")
	refused.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	for name, cmd := range map[string]*exec.Cmd{"again": again, "refused": refused} {
		if cmd == nil {
			continue
		}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "or unprivileged user namespaces") {
			t.Errorf("%s: got %v, %s, want words on what to do", name, err, out)
		}
	}
}

func TestEventually(t *testing.T) {
	n := 0
	Eventually(t, "three looks", func() bool { n++; return n == 3 })
	failed := &recorder{TB: t}
	eventually(failed, 0, "the impossible", func() bool { return failed.said != "" })
	if !strings.Contains(failed.said, "the impossible") {
		t.Errorf("got %q, want what was waited for", failed.said)
	}
}

func TestNeedProgram(t *testing.T) {
	for _, test := range []struct{ ci, get, want string }{
		{"", "apt-get install it", "skip: needs the program no-such-program: apt-get install it"},
		{"true", "apt-get install it", "fail: needs the program no-such-program: apt-get install it"},
		{"", "install it", `fail: lab: how to get no-such-program: "install it" does not begin with apt-get install`},
	} {
		t.Setenv("CI", test.ci)
		t.Setenv(notRun, "")
		r := &recorder{TB: t}
		NeedProgram(r, "no-such-program", test.get)
		if r.said != test.want {
			t.Errorf("CI=%q: got %q, want %q", test.ci, r.said, test.want)
		}
	}
}

// TestNotRun: after the tests make test prints what was skipped, with counted reasons and one command.
func TestNotRun(t *testing.T) {
	script := Value(filepath.Abs("../../.ci/test"))(t)
	self := fmt.Sprintf("/proc/%d/exe", os.Getpid()) // an ordinary user cannot reach it by its path
	for _, test := range []struct {
		part, want string
		code       int
	}{
		{"skip", `
Not run on this machine: 4 tests or parts of tests.
      2 needs the program no-such-program
      1 needs another program
      1 needs something else
To get the programs (Debian): apt-get install --no-install-recommends it more that
`, 7},
		{"skip nothing", "", 7},
		{"succeed", "", 0},
	} {
		again := helper(test.part)
		cmd := exec.Command(script, append([]string{self}, again.Args[1:]...)...)
		cmd.Env = append(again.Env, "CI=")
		out, err := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != test.code || string(out) != test.want {
			t.Errorf("%s: got exit code %d (%v) and %q, want %d and %q", test.part, got, err, out, test.code, test.want)
		}
	}
}

// TestNotListed: a skip that cannot be listed is a failure.
func TestNotListed(t *testing.T) {
	t.Setenv("CI", "")
	t.Setenv(notRun, filepath.Join(t.TempDir(), "none"))
	r := &recorder{TB: t}
	if Skip(r, "needs something"); !strings.HasPrefix(r.said, "fail: needs something, and listing that: ") {
		t.Errorf("got %q, want a failure", r.said)
	}
}

// TestInterruptedList: an interface whose addresses change while they are listed still settles.
func TestInterruptedList(t *testing.T) {
	client, _ := Pair(t)
	for i := range 1000 { // more than one message of the kernel holds
		Must(t, client.AddAddr("vc", fmt.Sprintf("2001:db8:1::%x/64", i+1)))
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() { stopped <- client.Do(func() error { return changeAddresses("vc", stop) }) }()
	for range 100 {
		if _, err := client.settled("vc"); err != nil {
			t.Errorf("got %v", err)
			break
		}
	}
	close(stop)
	Must(t, <-stopped)
}

// changeAddresses adds and deletes one over its own socket until it is stopped.
func changeAddresses(dev string, stop <-chan struct{}) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(dev)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("2001:db8:2::1/64")), Flags: unix.IFA_F_NODAD}
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := errors.Join(h.AddrAdd(link, addr), h.AddrDel(link, addr)); err != nil {
			return err
		}
		time.Sleep(time.Millisecond) // otherwise no list is ever complete
	}
}
