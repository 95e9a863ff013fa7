package main

import (
	"flag"
	"testing"

	"sallyport/cmd/internal/man"
)

var update = flag.Bool("update", false, "write the manual pages anew")

// TestManPages keeps the manual pages up to date. After a change of a command or a client's file:
// go test ./cmd/spa-keygen -run ManPages -update
func TestManPages(t *testing.T) {
	man.Program(newRoot(), 8,
		man.Part{Title: "Files", Text: "/etc/spa/clients/NAME.toml\n\tOne client, with its key: spa-client.toml(5)."},
		man.Part{Title: "Exit status", Text: man.ExitStatus},
		man.Part{Title: "See also", Text: "spa-server(8), spa-client(1), spa-client.toml(5)"},
	).Hold(t, *update)

	settings := man.Settings(clientFile, nil)
	man.Page{Name: "spa-client.toml", Section: 5, About: "a client of a Sallyport gateway", Parts: []man.Part{
		{Title: "Description", Text: clientIntro},
		{Title: "Settings", Text: settings},
		{Title: "Example", Text: clientExample},
		{Title: "Files", Text: "/etc/spa/clients/NAME.toml\n\tReadable by root and the group spa only: it holds the key."},
		{Title: "See also", Text: "spa-keygen(8), spa-server(8), spa-server.toml(5)"},
	}}.Hold(t, *update)
	man.Names(t, settings, "../../keys/clientfile.go", nil)
}

const clientIntro = `/etc/spa/clients has a file for each client of the gateway: its key, what it may open, from where,
and until when. The client's name is the file's name. spa-keygen new writes the file, spa-keygen rotate and spa-keygen
revoke change it; every other setting may be edited by hand. A running server notices each change. A file with a mistake
shuts out that client only; spa-server check names the mistake.

The file holds the client's key. Whoever can read it can open what the client may open.`

// clientFile has each setting of a client's file with its comment.
const clientFile = `
version = 1           # The version of this format
# id = "f3ab12cd"       # The key's public name. spa-keygen writes it
# key = "..."           # The client's key, as in its token
# allow = ["ssh"]       # What it may open: names of services, and ports such as "tcp/8000-8050" if a service has them
# from = ["203.0.113.0/24"]  # Networks that it may knock from. Without this line, any
# deny = ["203.0.113.66/32"]  # Networks that it may not knock from, even if from has them
# widest4 = 24        # The widest IPv4 network around its own address that it may let in with --let-in, as the ` +
	`length of its prefix, 8 to 32: for clients whose address changes within a network. Without it, its own address only
# widest6 = 56        # The same for IPv6, 32 to 64
# delegate = ["203.0.113.0/24"]  # Networks, and any part of them, that it may let in with --let-in from any ` +
	`address: for example, a phone that opens for a laptop. Without it, none
# when = ["mon-fri 08:00-18:00"]  # When it may open, by the gateway's time zone. Without it, always
# expires = 2027-01-01T00:00:00Z  # When the key stops working. Without it, never
# max_for = "1h"      # The longest time that it may have something open, if the service allows as much
# require_source = true  # Its packets must state the address that they come from. Set it for each client with a ` +
	`public address of its own: otherwise an attacker who intercepts a packet can send it from another address. A ` +
	`client behind NAT cannot state its address
# recovery = 3        # How many uses its recovery key has: spa-keygen new --recovery writes this. A lower number ` +
	`takes effect at once. A higher one, or the line in an ordinary client's file, needs a new key: spa-keygen rotate
# revoked = 2026-11-01T12:00:00Z  # When it was revoked: it is shut out. spa-keygen revoke writes it
# [previous]          # The key before the last spa-keygen rotate
# id = "0badcafe"     # As above
# key = "..."         # As above
# until = 2026-11-08T12:00:00Z  # From then on that key opens nothing
`

const clientExample = `  version = 1
  id = "f3ab12cd"
  key = "..."
  allow = ["ssh", "tcp/8443"]
  from = ["203.0.113.0/24"]
  when = ["mon-fri 08:00-18:00"]
  require_source = true`
