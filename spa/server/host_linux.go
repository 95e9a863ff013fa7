package server

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// boundUDPPorts returns the UDP ports that programs of this network namespace are bound to, as
// proc_pid_net(5) lists them: the second field is the local address and port in hex.
func boundUDPPorts() ([]uint16, error) {
	var ports []uint16
	for _, path := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
		file, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6 here
		}
		if err != nil {
			return nil, fmt.Errorf("server: looking for bound ports: %w", err)
		}
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) < 2 {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			if port, err := strconv.ParseUint(hex, 16, 16); err == nil {
				ports = append(ports, uint16(port))
			}
		}
	}
	return ports, nil
}
