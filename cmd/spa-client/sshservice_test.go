package main

import (
	"errors"
	"strings"
	"testing"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
)

// TestSSHConfigNeedsTCP: --port does not help for a service without TCP ports.
func TestSSHConfigNeedsTCP(t *testing.T) {
	p := &keys.Profile{Name: "gw", Services: map[string][]string{"mosh": {"udp/60000-60010"}, "multi": {"tcp/1", "tcp/2"}}}
	for service, want := range map[string]string{"mosh": "ssh needs a service with a TCP port: spa-client ssh-config " +
		"mosh|multi", "multi": "choose ssh's port: --port PORT"} {
		_, _, err := sshService(p, []string{service}, 0)
		var exit *cli.Exit
		if !errors.As(err, &exit) || exit.Code != cli.Misused || !strings.Contains(exit.Hint, want) {
			t.Errorf("%s: got %+v, want %q", service, exit, want)
		}
	}
}
