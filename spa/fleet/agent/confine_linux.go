package agent

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// Confine takes from this process, for ever, every file but those that an agent with this configuration needs: its
// certificates, the gateway's report and what names of hosts need to read, and the directory of its bundle to write. It can still connect to
// sockets. Other programs that it started could gain nothing (no_new_privs). Where the kernel has no Landlock it does
// without. As root it refuses: an agent needs no privilege.
func Confine(c *Config, dir string) error {
	if os.Geteuid() == 0 {
		return ErrRoot
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("confining the agent: %w", err)
	}
	read := []string{dir, "/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf",
		"/etc/ssl", "/etc/pki", "/usr/share/ca-certificates", "/run/systemd/resolve", "/usr/share/zoneinfo", "/etc/localtime"}
	if filepath.IsAbs(c.From) {
		read = append(read, filepath.Dir(c.From))
	}
	for _, file := range []string{c.CA, c.Cert, c.Key, c.Taken} {
		if file != "" {
			read = append(read, filepath.Dir(file))
		}
	}
	var rules []landlock.Rule
	for _, path := range read {
		if fi, err := os.Stat(path); err == nil && fi.IsDir() {
			rules = append(rules, landlock.RODirs(path))
		} else if err == nil {
			rules = append(rules, landlock.ROFiles(path))
		}
	}
	if c.To != "" {
		rules = append(rules, landlock.RWDirs(filepath.Dir(c.To)))
	}
	rules = append(rules, landlock.RWFiles("/dev/null").IgnoreIfMissing())
	if err := landlock.V6.BestEffort().RestrictPaths(rules...); err != nil {
		return fmt.Errorf("confining the agent: %w", err)
	}
	return nil
}
