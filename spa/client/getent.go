package client

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"time"
)

// getentTime is how long getent may take: a service that it asks may not answer.
const getentTime = 5 * time.Second

// Getent returns the addresses of a host name from the modules of nsswitch.conf(5), such as mDNS, containers or a
// directory: Go's resolver only knows files and DNS. It runs getent(1), and returns none if there is no such program or
// it finds none.
func Getent(ctx context.Context, host string) []netip.Addr {
	if host == "" || strings.Trim(host[:1], "-") == "" { // it would be an option
		return nil
	}
	program, err := exec.LookPath("getent")
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, getentTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "ahosts", host)
	cmd.WaitDelay = time.Second // for its child processes
	out, err := cmd.Output()
	if err != nil {
		return nil
	}
	var addrs []netip.Addr
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 0 {
			if addr, err := netip.ParseAddr(fields[0]); err == nil {
				addrs = append(addrs, addr)
			}
		}
	}
	return unmapped(addrs)
}
