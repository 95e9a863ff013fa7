package sandbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// report is a helper process's output.
type report struct {
	State   State
	Err     string
	Denied  bool              // Err is a permission error
	Results map[string]string // attack and thread -> error, "" where it succeeded
	Works   map[string]string // what must still work -> error
	Program string            // what a program printed of itself
}

func TestMain(m *testing.M) {
	lab.Become()
	part := os.Getenv("SANDBOX_HELPER")
	if part == "" {
		lab.Main(m)
	}
	help(part)
}

// help plays a part in its own process.
func help(part string) {
	var r report
	switch part {
	case "whoami":
		fmt.Println("reading /etc/passwd:", opens("/etc/passwd"))
		text, err := os.ReadFile("/proc/thread-self/status")
		fmt.Printf("%s", text)
		exitOn(err)
		return
	case "victim":
		fmt.Println("ready")
		for {
			_ = unix.Pause() // until it is killed; signals of the runtime's own wake it
		}
	case "as":
		r.as(os.Getenv("SANDBOX_USER"))
	case "require":
		r.fail(Require(true))
	case "require for bound sockets":
		r.fail(Require(false))
	case "drop under a liar":
		exitOn(lie(atoi(os.Getenv("SANDBOX_CALL")), atoi(os.Getenv("SANDBOX_ARG")), 0))
		r.fail(r.drop())
	case "drop":
		r.fail(r.drop())
	case "attack":
		r.attack(r.drop)
	case "attack undropped":
		r.attack(func() error { return nil })
	case "attack with programs":
		r.attackWithPrograms()
	case "landlock":
		r.landlockAlone(os.Getenv("SANDBOX_PART") == "programs")
	case "fatal":
		r.die(os.Getenv("SANDBOX_FATAL"))
	}
	exitOn(json.NewEncoder(os.Stdout).Encode(r))
}

// as opens files as root, as the user, and as root again, on many threads, and drops.
func (r *report) as(user string) {
	dir := os.Getenv("SANDBOX_DIR")
	r.Results = make(map[string]string)
	try := func(when string) {
		start := make(chan struct{})
		wait := threads(allThreads, start, func(i int) {
			results.Lock()
			defer results.Unlock()
			for _, name := range []string{"of root", "of the user", "of a group"} {
				r.Results[when+", "+name+", "+strconv.Itoa(i)] = text(opens(filepath.Join(dir, name)))
			}
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			r.Results[when+", packets, "+strconv.Itoa(i)] = text(err)
			if err == nil {
				unix.Close(fd)
			}
		})
		close(start)
		wait()
	}
	try("before")
	exitOn(As(user, func() error { try("meanwhile"); return nil }))
	try("after")
	r.fail(r.drop())
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// drop is the drop of the daemon, or of another of our processes.
func (r *report) drop() error {
	for call := range strings.FieldsSeq(os.Getenv("SANDBOX_LACKS")) {
		exitOn(lie(atoi(call), anyArg, unix.ENOSYS))
	}
	dir := os.Getenv("SANDBOX_DIR")
	files := Files{Read: []string{filepath.Join(dir, "read")}, Write: []string{filepath.Join(dir, "write")}}
	var err error
	switch os.Getenv("SANDBOX_PART") {
	case "programs":
		files.Run = []string{filepath.Join(dir, "plain"), "/lib", "/lib64", "/usr/lib"}
		files.Read = append(files.Read, "/proc")
		files.Write = append(files.Write, os.DevNull)
		r.State, err = DropForPrograms(files)
	case "nothing":
		r.State, err = DropAll()
	default:
		r.State, err = Drop(os.Getenv("SANDBOX_USER"), files)
	}
	return err
}

// landlockAlone tries what the system call filter would refuse before Landlock sees it.
func (r *report) landlockAlone(programs bool) {
	rules, err := newRuleset(Files{}, programs)
	exitOn(err)
	exitOn(rules.enforce())
	r.Results = map[string]string{"connect": "", "signal": ""}
	if _, err := net.Dial("tcp", "127.0.0.1:1"); errors.Is(err, unix.EACCES) {
		r.Results["connect"] = err.Error()
	}
	if err := unix.Kill(os.Getppid(), 0); err != nil {
		r.Results["signal"] = err.Error()
	}
}

// die drops and makes a fatal call, on an old thread or a new one.
func (r *report) die(what string) {
	start := make(chan struct{})
	name, late := strings.CutSuffix(what, " later")
	all := maps.Clone(fatal)
	maps.Copy(all, otherInterfaces())
	try := func(int) { r.Results = map[string]string{what: text(all[name]())} }
	if late {
		exitOn(r.drop())
		threads(1, start, try)
		close(start)
		select {}
	}
	wait := threads(1, start, try)
	exitOn(r.drop())
	close(start)
	wait()
}

func (r *report) fail(err error) {
	if err != nil {
		r.Err, r.Denied = err.Error(), errors.Is(err, os.ErrPermission)
	}
}

// attack opens what the server opens, drops, and then tries everything on threads from before and on new ones.
func (r *report) attack(drop func() error) {
	r.Results, r.Works = make(map[string]string), make(map[string]string)
	packets, err := openPackets()
	exitOn(err)
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	exitOn(err)
	lo, err := route.LinkByName("lo")
	exitOn(err)
	dir := os.Getenv("SANDBOX_DIR")
	start := make(chan struct{})
	waitBefore := threads(allThreads/2, start, func(i int) { r.tryAll(fmt.Sprintf("thread %d from before", i)) })
	if err := drop(); err != nil {
		r.fail(err)
		return
	}
	close(start)
	waitBefore()
	threads(allThreads/2, start, func(i int) { r.tryAll(fmt.Sprintf("thread %d from after", i)) })()
	if os.Getenv("SANDBOX_PART") == "nothing" {
		return
	}
	r.Works["packets"] = text(packets())
	r.Works["netlink"] = text(addAddress(route, lo))
	r.Works["reading a configuration"] = text(opens(filepath.Join(dir, "read", "file")))
	r.Works["writing to the state"] = text(openFor(filepath.Join(dir, "write", "new"), os.O_RDWR|os.O_CREATE|os.O_APPEND))
	r.Works["removing from the state"] = text(unix.Unlinkat(unix.AT_FDCWD, filepath.Join(dir, "write", "new"), 0))
	r.Works["growing a file"] = text(grow(filepath.Join(dir, "write", "grows")))
}

// attackWithPrograms tries what the process that starts programs must not do, itself and through a program.
func (r *report) attackWithPrograms() {
	dir, victim := os.Getenv("SANDBOX_DIR"), atoi(os.Getenv("SANDBOX_VICTIM"))
	exitOn(r.drop())
	r.Results, r.Works = make(map[string]string), make(map[string]string)
	cmd := exec.Command(filepath.Join(dir, "plain")) // before attacks change what this thread passes on
	cmd.Env = append(os.Environ(), "SANDBOX_HELPER=whoami")
	out, err := cmd.CombinedOutput()
	r.Works["program"] = text(err)
	r.Program = string(out)
	for _, a := range slices.Concat(attacks(dir, victim), escapes(dir, victim)) {
		r.Results[a.name] = text(a.try())
	}
}

// allThreads is how many threads attack: half of them exist before the drop.
const allThreads = 6

// attempts returns the attacks to try, given what the kernel lacks.
func attempts() []attack {
	dir, victim := os.Getenv("SANDBOX_DIR"), atoi(os.Getenv("SANDBOX_VICTIM"))
	lacks := os.Getenv("SANDBOX_LACKS")
	list := attacks(dir, victim)
	lacking := func(call int) bool { return strings.Contains(lacks, strconv.Itoa(call)) }
	if lacking(unix.SYS_SECCOMP) {
		list = append(list, unfiltered(dir, victim)...)
	}
	for _, a := range escapes(dir, victim) {
		kind, _, _ := strings.Cut(a.name, ": ")
		if !lacking(map[string]int{"file": unix.SYS_LANDLOCK_CREATE_RULESET, "call": unix.SYS_SECCOMP}[kind]) {
			list = append(list, a)
		}
	}
	return list
}

var results sync.Mutex // guards report.Results: one attacker at a time

func (r *report) tryAll(where string) {
	results.Lock()
	defer results.Unlock()
	for _, a := range attempts() {
		r.Results[a.name+" on "+where] = text(a.try())
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// openPackets opens a packet socket and returns a function that reports whether it still
// sees a datagram sent through loopback.
func openPackets() (func() error, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_IP)))
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("udp", "127.0.0.1:9")
	if err != nil {
		return nil, err
	}
	return func() error {
		defer conn.Close()
		if _, err := conn.Write([]byte("seen")); err != nil {
			return err
		}
		limit := unix.NsecToTimeval(int64(lab.Patience))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		_, _, err = unix.Recvfrom(fd, make([]byte, 100), 0)
		return err
	}, nil
}

func htons(n uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n)) }

// addAddress writes through rtnetlink, which needs CAP_NET_ADMIN as nftables does.
func addAddress(route *netlink.Handle, lo netlink.Link) error {
	addr, err := netlink.ParseAddr("198.51.100.1/32")
	if err != nil {
		return err
	}
	return route.AddrAdd(lo, addr)
}

// grow reserves space for a file, as the journal does while it runs.
func grow(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, 4096)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // it is the file system that cannot
	}
	return errors.Join(err, f.Close(), unix.Unlinkat(unix.AT_FDCWD, path, 0))
}
