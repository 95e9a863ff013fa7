package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/firewall"
	"sallyport/firewall/survey"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/setup"
)

// look inspects the machine in the network namespace of the calling thread, and records what it cannot inspect.
func look(ctx context.Context) *host {
	h := &host{root: "/", uid: os.Geteuid(), accounts: setup.Account, resolve: resolve,
		medium: mediumOf, ask: setup.AskStatus, connect: connect}
	var err error
	h.rules, err = survey.Read(ctx)
	h.notSeen("the rule sets of other tools", err)
	if h.rules != nil {
		h.links = h.rules.Links
	}
	h.defaults, err = defaultRoutes()
	h.notSeen("default routes", err)
	h.listeners, err = listeners()
	h.notSeen(whoListens, err)
	h.clock, err = readClock()
	h.notSeen("the clock", err)
	h.conntrack, err = readConntrack()
	h.notSeen("how full connection tracking is", err)
	h.bridging, h.around, h.routes = readBridging(), readAround(), readRoutes()
	h.own, err = readOwnPorts()
	h.notSeen("which ports the kernel picks for sockets", err)
	h.running = setup.Running()
	h.lacks = sandbox.Lacks()
	h.persists = h.uid == 0 && firewall.CanPersist()
	return h
}

// resolveWithin is how long to wait for a name server, which check does not test.
const resolveWithin = 2 * time.Second

func resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

func readClock() (clock, error) {
	var t unix.Timex // no modes: nothing is changed
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return clock{}, fmt.Errorf("asking the kernel for its clock: %w", err)
	}
	return clockOf(state, t), nil
}

func clockOf(state int, t unix.Timex) clock {
	return clock{
		known:  true,
		synced: state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0,
		within: time.Duration(t.Esterror) * time.Microsecond,
	}
}

func readConntrack() (conntrack, error) {
	count, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_count")
	if errors.Is(err, fs.ErrNotExist) {
		return conntrack{}, nil // not in use here
	}
	limit, err2 := readNumber("/proc/sys/net/netfilter/nf_conntrack_max")
	seconds, err3 := readNumber("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
	return conntrack{count, limit, time.Duration(seconds) * time.Second}, errors.Join(err, err2, err3)
}

func readBridging() bridging {
	is := func(name string) (set, ok bool) {
		n, err := readNumber("/proc/sys/net/bridge/bridge-nf-" + name)
		return n != 0, err == nil
	}
	var b bridging
	b.calls4, b.loaded = is("call-iptables")
	b.calls6, _ = is("call-ip6tables")
	b.filtersVLANs, _ = is("filter-vlan-tagged")
	return b
}

// readRoutes reports in which families some interface forwards what arrives by it.
func readRoutes() routes {
	forwards := func(family string) bool {
		files, _ := filepath.Glob("/proc/sys/net/" + family + "/conf/*/forwarding")
		return slices.ContainsFunc(files, func(path string) bool {
			n, err := readNumber(path)
			name := filepath.Base(filepath.Dir(path))
			return err == nil && n != 0 && name != "lo" && name != "default"
		})
	}
	return routes{forwards("ipv4"), forwards("ipv6")}
}

func readOwnPorts() (ownPorts, error) {
	between, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	reserved, err2 := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
	if err := errors.Join(err, err2); err != nil {
		return ownPorts{}, err
	}
	return parseOwnPorts(string(between), string(reserved))
}

func readNumber(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// defaultRoutes returns the interfaces of the default routes: strangers' packets arrive there.
func defaultRoutes() ([]string, error) {
	var names []string
	ipv4, err := fields("/proc/thread-self/net/route", 8)
	for _, f := range ipv4 {
		if mask := f[7]; mask == "00000000" {
			names = append(names, f[0])
		}
	}
	ipv6, err6 := fields("/proc/thread-self/net/ipv6_route", 10)
	for _, f := range ipv6 {
		if length := f[1]; length == "00" && f[9] != "lo" {
			names = append(names, f[9])
		}
	}
	return names, errors.Join(err, err6)
}

// fields returns the lines of a proc file that have at least so many words. A missing file (no IPv6) has none.
func fields(path string, words int) ([][]string, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var lines [][]string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= words {
			lines = append(lines, f)
		}
	}
	return lines, nil
}

// media maps magic numbers of file systems (statfs(2)) that lose their contents at a reboot, or are on another machine.
var media = map[uint32]medium{
	unix.TMPFS_MAGIC: inMemory, unix.RAMFS_MAGIC: inMemory,
	unix.NFS_SUPER_MAGIC: onNetwork, unix.SMB_SUPER_MAGIC: onNetwork, unix.SMB2_SUPER_MAGIC: onNetwork,
	unix.CIFS_SUPER_MAGIC: onNetwork, unix.AFS_SUPER_MAGIC: onNetwork, unix.CEPH_SUPER_MAGIC: onNetwork,
}

func mediumOf(path string) medium {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return onDisk // a missing file is reported elsewhere
	}
	return media[uint32(s.Type)]
}
