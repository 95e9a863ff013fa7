package check

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"sallyport/firewall/survey"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

// host is the state of the machine. Inspecting and judging are separate: the checks take it as it is, and change
// nothing.
type host struct {
	root      string     // of the file system: /
	from      netip.Addr // the client to follow; not valid: a stranger
	uid       int        // of this process
	running   bool       // a server runs in this network namespace
	rules     *survey.Ruleset
	links     []survey.Link
	defaults  []string // interfaces of default routes
	listeners []listener
	clock     clock
	conntrack conntrack
	bridging  bridging
	routes    routes
	own       ownPorts
	around    around
	persists  bool     // the kernel can keep the guard over a flush while no server runs
	lacks     []string // parts of the sandbox that this kernel lacks
	accounts  func(name string) (uid, gid int, ok bool)
	resolve   func(ctx context.Context, name string) ([]netip.Addr, error)
	medium    func(path string) medium
	connect   func(ctx context.Context, to netip.AddrPort) error
	version   string // of this program
	ask       func(ctx context.Context, c *config.Config) (*control.Status, error)
	unseen    []unseen
}

// whoListens is the inspection that shows ordinary users only their own processes.
const whoListens = "which program listens where"

// unseen is something that could not be inspected, and why.
type unseen struct{ what, why string }

// listener is a socket that waits for packets from others.
type listener struct {
	service.Proto
	local netip.AddrPort
	held  []string // names of the processes that hold it; none: unknown
	pids  []int    // the processes, without those in startOthers
}

// startOthers are programs that listen for many services and start each on demand. Two ports of one of them are
// unrelated. systemd's are known by its units.
var startOthers = []string{"systemd", "inetd", "xinetd"}

// clock is what the kernel knows about its clock (adjtimex(2)).
type clock struct {
	known  bool
	synced bool
	within time.Duration // estimated error
}

// conntrack is how full the connection table is, and after what silence a TCP session is forgotten; zero: unknown.
type conntrack struct {
	count, max  int
	established time.Duration
}

// medium is the kind of a file system.
type medium uint8

const (
	onDisk medium = iota
	inMemory
	onNetwork
)

func (h *host) notSeen(what string, err error) {
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return
	}
	why := err.Error()
	if errors.Is(err, os.ErrPermission) && h.uid != 0 {
		why = "that needs root"
	}
	h.unseen = append(h.unseen, unseen{what, why})
}

// close releases what the checks needed.
func (h *host) close() {
	if h.rules != nil {
		_ = h.rules.Close() // it was only read
	}
}

// listens returns the listeners on a port.
func (h *host) listens(proto service.Proto, port uint16) []listener {
	var found []listener
	for _, l := range h.listeners {
		if l.Proto == proto && l.local.Port() == port {
			found = append(found, l)
		}
	}
	return found
}

// listensForOthers is listens without those on loopback.
func (h *host) listensForOthers(proto service.Proto, port uint16) []listener {
	return slices.DeleteFunc(h.listens(proto, port), func(l listener) bool { return l.local.Addr().IsLoopback() })
}
