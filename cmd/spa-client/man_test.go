package main

import (
	"flag"
	"testing"

	"sallyport/cmd/internal/man"
)

var update = flag.Bool("update", false, "write the manual pages anew")

// TestManPages keeps the manual pages up to date. After a change of a command or a host's file:
// go test ./cmd/spa-client -run ManPages -update
func TestManPages(t *testing.T) {
	t.Setenv("HOME", "~")
	t.Setenv("XDG_CONFIG_HOME", "")
	man.Program(newRoot(), 1,
		man.Part{Title: "Files", Text: "~/.config/spa/hosts/NAME.toml\n\tA gateway, with the key for it: spa-host.toml(5)."},
		man.Part{Title: "See also", Text: "spa-host.toml(5), spa-keygen(8), spa-server(8), ssh_config(5)"},
	).Hold(t, *update)

	settings := man.Settings(hostFile, nil)
	man.Page{Name: "spa-host.toml", Section: 5, About: "a Sallyport gateway that spa-client knocks on", Parts: []man.Part{
		{Title: "Description", Text: hostIntro},
		{Title: "Settings", Text: settings},
		{Title: "Files", Text: "~/.config/spa/hosts/NAME.toml\n\tReadable by its owner only: it holds the key."},
		{Title: "See also", Text: "spa-client(1), spa-client.toml(5)"},
	}}.Hold(t, *update)
	man.Names(t, settings, "../../keys/profilefile.go", nil)
	man.Names(t, settings, "../../keys/locked.go", nil)
}

const hostIntro = `spa-client import writes this file from an enrolment token. It has all that a knock needs: where the
gateway is, and the client's key for it. The file of a fleet is for all its gateways: it has fleet_id, domain and
gateways in place of address, server_id and id, and spa-client derives the keys for the gateway that it knocks on.
spa-client lock encrypts the keys, and spa-client hosts lists the files without them. The settings address, domain,
gateways, services and source may be edited by hand, but not while the file is locked: it could then no longer be
unlocked.`

// hostFile has each setting of a host's file with its comment.
const hostFile = `
version = 1            # The version of this format
# name = "gw"            # What --host calls the gateway: the file's name
# address = "gw.example.net"  # A name or an IP address of the gateway
knock_ports = [62201]  # UDP ports that take knocks; spa-client picks one
# domain = "example.net"  # Of a fleet: gateways that are not listed are at their name in this domain
# server_id = "..."      # The gateway's own name on the wire
# fleet_id = "..."       # Of a fleet: makes the server_id of each gateway
# gate_key = "..."       # Shared by all clients of the gateway
# client = "alice"       # What the gateway calls this client
# id = "..."             # The key's public name
# key = "..."            # The client's key
receipts = true        # Whether the gateway answers
# source = "observed"  # Which address a knock states: "auto", "observed", an IP address or "stun:HOST". ` +
	`Without it, "auto"
# recovery = true      # The key is good for a few uses: only commands that open a service use it
# gateways = { web7 = "", db1 = "198.51.100.7" }  # Of a fleet: gateways by name, and their addresses. Without ` +
	`one, the name in the domain
# services = { ssh = ["tcp/22"] }  # The ports of each service, as of the day of the token
# [locked]             # In place of gate_key, id and key, after spa-client lock
# keyring = "..."      # Where the desktop's keyring has the passphrase. Without it, spa-client asks for one
# memory = 262144      # Memory that a guess of the passphrase costs, in KiB
# passes = 3           # Passes over that memory
# lanes = 4            # Lanes of that memory
# salt = "..."         # Random, for this file
# sealed = "..."       # The encrypted keys
`
