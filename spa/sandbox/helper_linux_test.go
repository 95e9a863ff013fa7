package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// report is what a helper process says on its standard output.
type report struct {
	State   State
	Err     string
	Denied  bool              // Err is a permission error
	Results map[string]string // attack and thread -> error, "" where it succeeded
	Works   map[string]string // what has to go on working -> error
}

func TestMain(m *testing.M) {
	part := os.Getenv("SANDBOX_HELPER")
	if part == "" {
		lab.Main(m)
	}
	help(part)
}

// help plays a part in a process of its own.
func help(part string) {
	var r report
	switch part {
	case "whoami":
		text, err := os.ReadFile("/proc/thread-self/status")
		fmt.Printf("%s", text)
		exitOn(err)
		return
	case "victim":
		fmt.Println("ready")
		for {
			_ = unix.Pause() // until it is killed; signals of the runtime's own wake it
		}
	case "require":
		r.fail(Require())
	case "drop under a liar":
		exitOn(lie(atoi(os.Getenv("SANDBOX_CALL")), atoi(os.Getenv("SANDBOX_ARG"))))
		state, err := Drop(os.Getenv("SANDBOX_USER"))
		r.State = state
		r.fail(err)
	case "drop":
		state, err := Drop(os.Getenv("SANDBOX_USER"))
		r.State = state
		r.fail(err)
	case "attack":
		r.attack(func() error {
			state, err := Drop(os.Getenv("SANDBOX_USER"))
			r.State = state
			return err
		})
	case "attack undropped":
		r.attack(func() error { return nil })
	}
	exitOn(json.NewEncoder(os.Stdout).Encode(r))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (r *report) fail(err error) {
	if err != nil {
		r.Err, r.Denied = err.Error(), errors.Is(err, os.ErrPermission)
	}
}

// attack opens what the server opens, drops, and then tries everything on threads that
// were there before and on threads made later.
func (r *report) attack(drop func() error) {
	r.Results, r.Works = make(map[string]string), make(map[string]string)
	packets, err := openPackets()
	exitOn(err)
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	exitOn(err)
	start := make(chan struct{})
	waitBefore := threads(3, start, func(i int) { r.tryAll(fmt.Sprintf("thread %d from before", i)) })
	if err := drop(); err != nil {
		r.fail(err)
		return
	}
	close(start)
	waitBefore()
	threads(3, start, func(i int) { r.tryAll(fmt.Sprintf("thread %d from after", i)) })()
	r.Works["packets"] = text(packets())
	r.Works["netlink"] = text(addAddress(route))
}

var results sync.Mutex // guards report.Results: one attacker at a time

func (r *report) tryAll(where string) {
	results.Lock()
	defer results.Unlock()
	for _, a := range attacks(os.Getenv("SANDBOX_DIR"), atoi(os.Getenv("SANDBOX_VICTIM"))) {
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
	return func() error {
		conn, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return err
		}
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

func htons(n uint16) uint16 { return n<<8 | n>>8 }

// addAddress writes through rtnetlink, which needs CAP_NET_ADMIN as nftables does.
func addAddress(route *netlink.Handle) error {
	lo, err := route.LinkByName("lo")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("198.51.100.1/32")
	if err != nil {
		return err
	}
	return route.AddrAdd(lo, addr)
}
