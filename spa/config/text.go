package config

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sallyport/keys"
)

// withServices puts the services in the order of their names, lists that are empty at nil
// as Load has them, and the defaults of their durations.
func (c Config) withServices() Config {
	c.Services = slices.Clone(c.Services)
	slices.SortFunc(c.Services, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	for i := range c.Services {
		s := &c.Services[i]
		s.For = or(s.For, defaultFor)
		s.MaxFor = or(s.MaxFor, max(s.For, defaultMaxFor))
		s.Addresses = none(s.Addresses)
	}
	c.Services = none(c.Services)
	c.Capture.Interfaces = none(c.Capture.Interfaces)
	c.Firewall.TrustedInterfaces = none(c.Firewall.TrustedInterfaces)
	return c
}

func none[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return list
}

// text is server.toml. It says every setting that somebody may want to change, with its
// default, so that nobody has to look for it.
func (c Config) text() string {
	var b strings.Builder
	c.writeGateway(&b)
	c.writeTables(&b)
	for _, s := range c.Services {
		s.write(&b)
	}
	if len(c.Services) == 0 {
		b.WriteString("# [service.ssh]                 # what clients ask for: spa-client open ssh\n" +
			"# ports = [\"tcp/22\"]            # guarded: shut to all but granted addresses\n" +
			"# for = \"30s\"                   # how long it stays open for new connections\n" +
			"# max_for = \"10m\"               # the most a client may ask for\n")
	}
	return b.String()
}

func (c Config) writeGateway(b *strings.Builder) {
	b.WriteString("# The gateway " + c.Name + ". No secret is in this file: keys are in gate.key and clients/.\n" +
		"# Unknown keys are errors. \"spa-server check\" reads it without touching anything.\n\n")
	setting(b, "version", strconv.Itoa(keys.Version), "of this file's format")
	setting(b, "name", quote(c.Name), "what new clients call this gateway")
	setting(b, "address", quote(c.Address), "where clients find it; written into their tokens")
	setting(b, "server_id", quote(c.ServerID.String()), "")
	b.WriteString("#   a packet for another server id is worth nothing here: clients have it in their tokens, never change it\n")
	setting(b, "knock_ports", c.knockPortsText(), "UDP; one that the host serves itself: { port = 443, shared = true }")
	setting(b, "window", quote(keys.FormatDuration(c.Window)), "how far a client's clock may be off")
	setting(b, "receipts", strconv.FormatBool(c.Receipts), "answer clients: opened until when, or why not")
	setting(b, "state", quote(relative(c.Dir, c.State)), "journal, lock and ledger; relative to this file")
}

func (c Config) writeTables(b *strings.Builder) {
	b.WriteString("\n[capture]\n")
	setting(b, "mode", quote(c.Capture.Mode), "sniff: sees knocks before the firewall drops them")
	setting(b, "interfaces", list(c.Capture.Interfaces), "none named: all but loopback, also those that come later")
	b.WriteString("\n[firewall]\n")
	setting(b, "backend", quote(c.Firewall.Backend), "auto, nftables, or dry-run: decide and record, touch nothing")
	setting(b, "mode", quote(c.Firewall.Mode), "guard: shuts the services' ports, opens nothing that others shut")
	setting(b, "closed", quote(c.Firewall.Closed), "drop or reject: as the host's other closed ports answer")
	setting(b, "trusted_interfaces", list(c.Firewall.TrustedInterfaces), "from these every guarded port is open")
	if c.Firewall.Mark == 0 {
		b.WriteString("# mark = 0x20000000             # the connection mark's bit, if another tool uses this one\n")
	} else {
		setting(b, "mark", fmt.Sprintf("0x%08x", c.Firewall.Mark), "the connection mark's bit for admitted sessions")
	}
	b.WriteString("\n[audit]\n")
	setting(b, "file", quote(relative(c.State, c.Audit.File)), "one line of JSON a decision; relative to state")
	b.WriteString("\n# Of each client.\n[limits]\n")
	setting(b, "live_nonces", strconv.Itoa(c.Limits.LiveNonces), "packets within the window")
	setting(b, "grants", strconv.Itoa(c.Limits.Grants), "open at a time")
	setting(b, "grants_per_hour", strconv.Itoa(c.Limits.GrantsPerHour), "")
	b.WriteString("\n")
}

func (s Service) write(b *strings.Builder) {
	fmt.Fprintf(b, "[service.%s]\n", s.Name)
	ports := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		ports[i] = p.String()
	}
	setting(b, "ports", list(ports), "guarded: shut to all but granted addresses")
	setting(b, "for", quote(keys.FormatDuration(s.For)), "open for new connections, unless the client asks otherwise")
	setting(b, "max_for", quote(keys.FormatDuration(s.MaxFor)), "the most a client may ask for")
	if len(s.Addresses) > 0 {
		addresses := make([]string, len(s.Addresses))
		for i, a := range s.Addresses {
			addresses[i] = a.String()
		}
		setting(b, "addresses", list(addresses), "guarded beside the host's own")
	}
	b.WriteString("\n")
}

// setting writes a line with its comment in a column of its own.
func setting(b *strings.Builder, key, value, comment string) {
	line := key + " = " + value
	if comment != "" {
		line = fmt.Sprintf("%-30s  # %s", line, comment)
	}
	b.WriteString(line + "\n")
}

func (c Config) knockPortsText() string {
	ports := make([]string, len(c.KnockPorts))
	for i, k := range c.KnockPorts {
		ports[i] = strconv.Itoa(int(k.Port))
		if k.Shared {
			ports[i] = fmt.Sprintf("{ port = %d, shared = true }", k.Port)
		}
	}
	return "[" + strings.Join(ports, ", ") + "]"
}

// relative shows a path below dir as seen from there, any other as it is.
func relative(dir, path string) string {
	rel, err := filepath.Rel(dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return path
	}
	return rel
}

func list(texts []string) string {
	quoted := make([]string, len(texts))
	for i, s := range texts {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// quote writes a TOML basic string. Of the control characters only \t, \n and \r are
// spelt alike in Go and TOML; paths with others are refused when the file is read back.
func quote(s string) string { return strconv.Quote(s) }
