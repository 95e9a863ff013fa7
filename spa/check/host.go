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

// host is what Check finds on the machine. Looking is one thing, judging another: the checks
// take it as it is, and change nothing.
type host struct {
	root      string     // of the file tree: /
	from      netip.Addr // the client whose way is followed; not valid: a stranger's
	uid       int        // of whoever looks
	running   bool       // a server works in this network namespace
	rules     *survey.Ruleset
	links     []survey.Link
	defaults  []string // interfaces that a default route leads to
	listeners []listener
	clock     clock
	conntrack conntrack
	bridging  bridging
	own       ownPorts
	around    around
	persists  bool     // the kernel can keep the guard over a flush while no server runs
	lacks     []string // what of the sandbox this kernel does not have
	accounts  func(name string) (uid, gid int, ok bool)
	resolve   func(ctx context.Context, name string) ([]netip.Addr, error)
	medium    func(path string) medium
	version   string // of the program that looks
	ask       func(ctx context.Context, c *config.Config) (*control.Status, error)
	unseen    []unseen
}

// whoListens is the look that shows an ordinary user his own processes alone.
const whoListens = "which program listens where"

// unseen is a look that could not be taken, and why.
type unseen struct{ what, why string }

// listener is a socket that waits for packets from others.
type listener struct {
	service.Proto
	local netip.AddrPort
	held  []string // names of the processes that hold it; none: not known
	pids  []int    // the processes themselves, but for those in startOthers
}

// startOthers are programs that listen for many services, and start each when somebody comes.
// Two ports of one of them say nothing. Those of systemd are known by its units.
var startOthers = []string{"systemd", "inetd", "xinetd"}

// clock is what the kernel says of it (adjtimex(2)).
type clock struct {
	known  bool
	synced bool
	within time.Duration // estimated error
}

// conntrack is how full the table of connections is, and after what silence a TCP session is forgotten;
// zero: not known.
type conntrack struct {
	count, max  int
	established time.Duration
}

// medium is what kind of file system holds a file.
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

// close gives up what judging needed.
func (h *host) close() {
	if h.rules != nil {
		_ = h.rules.Close() // it was only read from
	}
}

// listens returns those that wait at a port.
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
