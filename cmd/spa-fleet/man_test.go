package main

import (
	"flag"
	"testing"

	"sallyport/cmd/internal/man"
)

var update = flag.Bool("update", false, "write the manual page anew")

// TestManPages keeps the manual page up to date. After a change of a command:
// go test ./cmd/spa-fleet -run ManPages -update
func TestManPages(t *testing.T) {
	man.Program(newRoot(), 8,
		man.Part{Title: "Files", Text: files},
		man.Part{Title: "Exit status", Text: man.ExitStatus},
		man.Part{Title: "See also", Text: "spa-server(8), spa-keygen(8), spa-client(1), spa-server.toml(5)"},
	).Hold(t, *update)
}

const files = `The office is a directory. All of it can lie in git: files that end in .age are sealed, the others hold
no secret. You may edit the terms of a client and the services in office.toml by hand. Each command checks all files,
and names the one in which it finds a mistake, half a merge or a conflict. Write access to the files decides who gets in
after the next publish, which reports all changes since the one before: protect the directory and the repository
accordingly.

office.toml
	The fleet: its name and domain, its id, the key that gateways trust, knock ports and services.

admins/NAME.toml
	An administrator's recipient.

gateways/NAME.toml
	A gateway's address and recipient.

clients/NAME.toml
	A client's terms, as in spa-client.toml(5) without keys, and gateways, a list of gateways that let it in.

clients/NAME.age
	The client's key, sealed to the vault.

vault.age
	The office's secrets, sealed to all administrators.

published.toml
	The serial of the last publish, and digests of what it said.

~/.config/spa/fleet.identity
	Your identity as an administrator. It opens the office.`
