package check

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sallyport/keys/quote"
	"sallyport/keys/service"
)

// listeners returns the sockets of this network namespace that wait for packets from others, as in proc_pid_net(5), and
// the processes that hold them. The error is about the processes: without privileges only one's own are visible.
func listeners() ([]listener, error) {
	found := []listener{} // not nil: it was inspected
	byInode := make(map[string][]int)
	for _, file := range []struct {
		name  string
		proto service.Proto
		state string // TCP_LISTEN; an unconnected UDP socket is in TCP_CLOSE
	}{{"tcp", service.TCP, "0A"}, {"tcp6", service.TCP, "0A"}, {"udp", service.UDP, "07"}, {"udp6", service.UDP, "07"}} {
		lines, err := fields("/proc/thread-self/net/"+file.name, 10)
		if err != nil {
			return nil, err
		}
		for _, f := range lines {
			local, ok := parseSocket(f[1])
			if !ok || f[3] != file.state {
				continue
			}
			byInode[f[9]] = append(byInode[f[9]], len(found))
			found = append(found, listener{Proto: file.proto, local: local})
		}
	}
	err := holders(func(inode, name string, pid int) {
		for _, i := range byInode[inode] {
			l := &found[i]
			if !slices.Contains(l.held, name) {
				l.held = append(l.held, name)
			}
			if !slices.Contains(startOthers, name) {
				l.pids = append(l.pids, pid)
			}
		}
	})
	return found, err
}

// parseSocket parses "0100007F:0016": the address in words of the machine's byte order.
func parseSocket(text string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), ok
}

// holders calls tell for each socket that a process holds. It stops at the first error which means that not all can be
// seen.
func holders(tell func(inode, name string, pid int)) error {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	var unseen error
	for _, dir := range processes {
		fds, err := os.ReadDir(dir + "/fd")
		if errors.Is(err, os.ErrPermission) {
			unseen = err
		}
		if len(fds) == 0 {
			continue
		}
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			target, _ := os.Readlink(dir + "/fd/" + fd.Name()) // "" if it has been closed
			if inode, ok := strings.CutPrefix(target, "socket:["); ok {
				tell(strings.TrimSuffix(inode, "]"), quote.Printable(strings.TrimSpace(string(comm))), pid)
			}
		}
	}
	return unseen
}
