package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"sallyport/cmd/internal/man"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

var update = flag.Bool("update", false, "write the manual pages anew")

// TestManPages keeps the manual pages up to date. After a change of a command or a setting:
// go test ./cmd/spa-server -run ManPages -update
func TestManPages(t *testing.T) {
	man.Program(newRoot(), 8,
		man.Part{Title: "Files", Text: serverFiles},
		man.Part{Title: "Exit status", Text: man.ExitStatus},
		man.Part{Title: "See also", Text: "spa-keygen(8), spa-client(1), spa-server.toml(5), spa-client.toml(5), nft(8)"},
	).Hold(t, *update)

	dir := t.TempDir()
	c := config.Default(dir)
	c.Name, c.Address, c.ServerID = "gw", "gw.example.net", lab.Value(keys.ParseServerID(exampleID))(t)
	c.Services = []config.Service{config.NewService("ssh", lab.Value(service.ParsePorts("tcp/22"))(t))}
	lab.Must(t, config.Create(dir, c))
	file := lab.Value(os.ReadFile(filepath.Join(dir, config.FileName)))(t)
	noDefault := regexp.MustCompile(`(?m)^(name|address|server_id|ports) = `)
	settings := man.Settings(noDefault.ReplaceAllString(string(file), "# $0"), moreSettings)
	man.Page{Name: "spa-server.toml", Section: 5, About: "settings of a Sallyport gateway", Parts: []man.Part{
		{Title: "Description", Text: settingsIntro},
		{Title: "Settings", Text: settings},
		{Title: "Example", Text: settingsExample},
		{Title: "Files", Text: "/etc/spa/server.toml\n\tThe settings. Root owns the file; the group spa may read it."},
		{Title: "See also", Text: "spa-server(8), spa-client.toml(5)"},
	}}.Hold(t, *update)
	man.Names(t, settings, "../../spa/config/*.go", moreSettings)
}

const serverFiles = `/etc/spa/server.toml
	The settings: spa-server.toml(5).

/etc/spa/gate.key
	The gate key, which all clients of this gateway share. It filters noise and opens nothing.

/etc/spa/fleet.key
	The key with which the gateway opens the bundles of its fleet. It never leaves the host.

/etc/spa/fleet.bundle
	What the office of the fleet has published for this gateway: its clients, signed and sealed.

/etc/spa/clients/NAME.toml
	One client, with its key: spa-client.toml(5).

The following files are in the state directory, which the setting state names.

journal
	The packets that were used. Without it the server refuses knocks for one window (30s), so that no copy gets in.

grants
	The open grants, so that a restart keeps them. A reboot ends them.

bundle-1, bundle-2
	The bundle of the fleet that is in force, for the next start, and the one before.

settings
	The last good server.toml, used at boot if the present one has a mistake. Another copy is in /etc/spa.

audit.jsonl
	One JSON line for each packet that was used, and for each act of an administrator.`

const exampleID = "6b0a7c1d9f3e48529d1c40f2ab77e813"

const settingsIntro = `spa-server init writes this file, with every setting. It holds no secret: keys are in gate.key
and in clients/NAME.toml beside it.

The file is TOML. A key that is misspelt, or that would have no effect, is an error with its line. spa-server check
reads the file and changes nothing; spa-server reload applies it to the running server, or prints the mistake and
applies nothing. A few settings, such as state, need a restart: reload says so.

Durations are written "30s", "10m" or "1h30m"; ports "tcp/22" or "udp/60000-60010"; hours "mon-fri 08:00-18:00".`

const settingsExample = `  version = 1
  name = "gw"
  address = "gw.example.net"
  server_id = "` + exampleID + `"

  [service.ssh]
  ports = ["tcp/22"]

  [service.mosh]
  ports = ["tcp/22", "udp/60000-61000"]
  for = "1m"
  max_for = "1h"
  when = ["mon-fri 08:00-18:00"]`

// moreSettings says more of a setting than there is room for in the file.
var moreSettings = map[string]string{
	"server_id": "Packets for another server id are ignored. Clients have it in their tokens, so never change it",
	"address":   "A name or an IP address, with the port for knocks if that is not 62201",
	"knock_ports": "Leave these ports shut in your own firewall: the server sees a knock before the firewall drops it. " +
		"A firewall in front of the host must let them through",
	"window": "Clocks of clients may be off by that much, earlier or later. After the journal was lost, or the host was " +
		"rebooted, knocks are refused for that long",
	"receipts": "Only packets made with a client's key are answered",
	"capture.mode": `"udp" needs no CAP_NET_RAW. Your own firewall must then let knocks through, and a scan may see ` +
		"the port",
	"capture.gate": `"auto" is "socket": an eBPF filter on the server's own sockets, or none if the kernel does not ` +
		`allow it. "xdp" drops forged knocks on the interfaces, before the host's firewall sees them. ` +
		"spa-server status shows which one is on",
	"firewall.backend": `"auto" takes nftables, or iptables where there is no nftables`,
	"firewall.mode": `"admit" loads no guard: your own rules shut the ports, and grants go into the sets that ` +
		"[firewall.admit] names",
	"firewall.closed":             "What happens to a connection to a guarded port without a grant",
	"firewall.trusted_interfaces": "Names of interfaces, such as wg0",
	"firewall.admit.table":        "Family and name of the table",
	"audit.file": `"journal" sends the lines to systemd's journal, with fields: ` +
		"journalctl SPA_CLIENT=alice",
	"fleet": "The office decides which clients may knock at which gateway, with spa-fleet(8), and publishes a " +
		"bundle for each. All settings here need a restart, except max_age and standalone",
	"fleet.bundle": "The server reads it when it changes. It takes over what the office has signed for this gateway, " +
		"unless it is older than the bundle in force",
	"fleet.taken": "One signed line without secrets, which spa-fleet status checks. Any program may carry it to the " +
		"office; the agent writes it into etcd",
	"fleet.share": "It is for root and the user spa-fleet. The socket gets the group of its directory",
	"fleet.standalone": `With "refuse", clients of the fleet get no answer then. With "local", each gateway of the site ` +
		"can use a packet once, and a close or a revocation holds at one gateway only",
	"fleet.local_clients": "They keep the gateway's own server_id and gate.key. A client of the fleet counts before a " +
		"file with its name",
	"limits":                 "These hold for each client",
	"limits.grants_per_hour": "How often a client may open something within an hour",
	"service.ssh":            "A table for each service, with a name of your choice: spa-client open ssh",
	"service.ssh.ports":      "Of the host, unless addresses names other machines",
	"service.ssh.addresses":  "The gateway is then their router. Its own port of that number is shut to all",
	"service.ssh.on_expiry":  `The default is "keep"`,
	"service.ssh.when":       "Days and hours in the time zone that zone names",
	"service.ssh.run": "A program, by its absolute path, and its arguments; there is no shell. Only root may be able to " +
		"change it. See examples/actions",
	"service.ssh.timeout": "The default is a minute",
	"metrics.listen":      "Where Prometheus reads what the gateway counts",
}
