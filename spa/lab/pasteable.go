package lab

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// programs are the commands that advice may use.
var programs = []string{"chgrp", "chmod", "chown", "df", "docker", "fail2ban-client", "firewall-cmd", "ip",
	"ip6tables", "iptables", "mkdir",
	"install", "ipvsadm", "modprobe", "mv", "nft", "shred", "spa-keygen", "spa-server", "su", "sysctl", "systemctl",
	"timedatectl", "ufw", "useradd"}

// Pasteable fails the test unless advice can be pasted into a shell: one command per line, and words as comments.
func Pasteable(t *testing.T, subject, advice string) {
	t.Helper()
	if advice == "" {
		t.Errorf("%q has no advice", subject)
	}
	if out, err := exec.Command("sh", "-n", "-c", advice).CombinedOutput(); err != nil {
		t.Errorf("%q: %q is no shell command: %s", subject, advice, out)
	}
	for line := range strings.SplitSeq(advice, "\n") {
		if first, _, _ := strings.Cut(line, " "); first != "#" && !slices.Contains(programs, first) {
			t.Errorf("%q: the line %q is neither a command nor a comment", subject, line)
		}
	}
}
