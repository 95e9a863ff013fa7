package lab

import (
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// killInside kills the processes inside the host that Start did not start: those that a process of the host left behind
// on purpose, such as one that should outlive it.
func (h *Host) killInside() {
	own := "net:[" + strconv.FormatUint(h.inode(), 10) + "]"
	for _, pid := range others() {
		if ns, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns", "net")); err == nil && ns == own {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		}
	}
}

func (h *Host) inode() uint64 {
	var stat unix.Stat_t
	if err := unix.Fstat(int(h.ns.Fd()), &stat); err != nil {
		return 0
	}
	return stat.Ino
}

// others returns all processes of the machine except this one.
func others() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}
