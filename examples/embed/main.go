// Embed shows how a Go program knocks before it connects: a client.Dialer replaces a net.Dialer. It reads a host that
// spa-client import has made.
//
//	embed ~/.config/spa/hosts/gw.toml http http://gw/
//	embed ~/.config/spa/hosts/gw.toml ssh alice id_ed25519 known_hosts uptime
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"sallyport/keys"
	"sallyport/spa/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) < 3 {
		return errors.New("usage: embed PROFILE http URL | embed PROFILE ssh USER KEYFILE KNOWNHOSTS COMMAND")
	}
	profile, err := keys.ReadProfile(args[0])
	if err != nil {
		return err
	}
	door := &client.Dialer{Profile: profile, Timeout: 10 * time.Second}
	switch {
	case args[1] == "http" && len(args) == 3:
		return fetch(ctx, door, args[2], out)
	case args[1] == "ssh" && len(args) == 6:
		return remote(ctx, door, login{user: args[2], key: args[3], known: args[4]}, args[5], out)
	}
	return fmt.Errorf("%s is neither http URL nor ssh USER KEYFILE KNOWNHOSTS COMMAND", args[1])
}
