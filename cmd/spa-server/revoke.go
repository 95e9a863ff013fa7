package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

func newRevoke(dir *string) *cobra.Command {
	var cut, asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke CLIENT|ADDRESS",
		Short: "End the grants of a client or an address now",
		Long: `Ends grants at once. Requests made before cannot open them again, however late their
packets arrive. A client's clock may be fast by as much as the window of server.toml (30s
by default), so for that long new knocks are refused too: those of the client, or those
from the address.

Sessions continue unless --cut ends them too, even those whose grant is over: all sessions
of an address, or those that a client started through its last 32 grants since the server
started.

Of gateways that share an address, all end the grants. The command waits until they have.

The key stays valid: its owner can knock again after that. "spa-keygen revoke" is permanent.`,
		Example: `  spa-server revoke alice
  spa-server revoke 203.0.113.7 --cut`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: cli.CompleteFirst(func() []string {
			return cli.ClientNames(filepath.Join(*dir,
				config.ClientsDir))
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := revocation(args[0])
			if err != nil {
				return err
			}
			r.Cut = cut
			return ask(cmd, *dir, r, func(reply control.Reply) error {
				if reply.Revoked == nil {
					return nil
				}
				if asJSON {
					return cli.JSON(cmd, reply.Revoked)
				}
				return printRevoked(cmd, r, *reply.Revoked)
			})
		},
	}
	cmd.Flags().BoolVar(&cut, "cut", false, "also end established sessions")
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

// revocation parses a client's name or an address.
func revocation(text string) (control.Request, error) {
	r := control.Request{Command: control.CommandRevoke}
	if source, err := netip.ParseAddr(text); err == nil {
		r.Source = source.Unmap().WithZone("")
		return r, nil
	}
	if err := service.ValidName(text); err != nil {
		return r, cli.Misuse(fmt.Errorf("%q is neither a client's name nor an address", text),
			"spa-keygen list shows the clients, spa-server grants the addresses")
	}
	r.Client = text
	return r, nil
}

func printRevoked(cmd *cobra.Command, r control.Request, revoked control.Revoked) error {
	w := cmd.OutOrStdout()
	now := time.Now()
	clients := make(map[string]bool)
	for _, g := range revoked.Ended {
		clients[g.Client] = true
		if _, err := fmt.Fprintf(w, "ended: %s\n", endedLine(g, now)); err != nil {
			return err
		}
	}
	if r.Cut {
		if _, err := fmt.Fprintf(w, "sessions cut: %d\n", revoked.Sessions); err != nil {
			return err
		}
	}
	if revoked.Site != "" && !revoked.Unconfirmed {
		fmt.Fprintf(w, "ended on all gateways of %s\n", revoked.Site)
	}
	switch {
	case r.Client != "" && revoked.Key == "none":
		cli.Note(cmd, "%s has no client file: its key opens nothing", r.Client)
	case r.Client != "" && revoked.Key != "good":
		cli.Note(cmd, "the key of %s is %s: it no longer opens anything", r.Client, revoked.Key)
	case revoked.Fleet:
		cli.Note(cmd, "the key of %s still works; to revoke it permanently, at the office: spa-fleet client revoke %[1]s",
			r.Client)
	case r.Client != "":
		cli.Note(cmd, "the key of %s still works; to revoke it permanently: spa-keygen revoke %[1]s", r.Client)
	case len(clients) > 0:
		cli.Note(cmd, "the keys still work; to revoke one permanently: spa-keygen revoke NAME")
	}
	if r.Client != "" && r.Cut {
		cli.Note(cmd, "sessions from before %s, when the server was started, are known by address only: spa-server revoke "+
			"ADDRESS --cut", cli.Clock(revoked.Since, now))
	}
	if revoked.Unconfirmed {
		return cli.Fail(fmt.Errorf("ended here, but the other gateways of %s have not confirmed it", revoked.Site),
			"they end it once they reach the store, unless spa-server is restarted here before; run this there too, and see: "+
				"spa-server status")
	}
	return nil
}

// endedLine describes a grant that ended early.
func endedLine(g control.Grant, now time.Time) string {
	ports := ""
	if len(g.Ports) > 0 {
		ports = fmt.Sprintf(" (%s)", strings.Join(g.Ports, ", "))
	}
	return fmt.Sprintf("%s %s%s for %s, which was open until %s", g.Client, g.Service, ports, g.Whom(),
		cli.Clock(g.Until, now))
}
