package config

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sallyport/keys/service"
	"sallyport/keys/strict"
)

// withServices sorts the services by name, sets empty lists to nil as Load does, and fills in default durations.
func (c Config) withServices() Config {
	c.Services = slices.Clone(c.Services)
	slices.SortFunc(c.Services, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
	for i := range c.Services {
		s := &c.Services[i]
		s.For = or(s.For, defaultFor)
		s.MaxFor = or(s.MaxFor, max(s.For, defaultMaxFor))
		s.Ports, s.Addresses, s.When, s.Forward = none(s.Ports), none(s.Addresses), none(s.When), none(s.Forward)
		s.Action = s.Action.filled()
		s.OnExpiry = or(s.OnExpiry, keepSessions)
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

// text returns server.toml. It lists every setting that people may want to change, with its default.
func (c Config) text() string {
	var b strings.Builder
	c.writeGateway(&b)
	c.writeTables(&b)
	for _, s := range c.Services {
		s.write(&b)
	}
	if len(c.Services) == 0 {
		example(&b, "[service.ssh]", "what clients ask for: spa-client open ssh")
		example(&b, `ports = ["tcp/22"]`, "guarded: shut to all but granted addresses")
		example(&b, `for = "30s"`, "how long it stays open for new connections")
		example(&b, `max_for = "10m"`, "the most a client may ask for")
		NewService("ssh").writeRest(&b)
	}
	return b.String()
}

func (c Config) writeGateway(b *strings.Builder) {
	b.WriteString("# The gateway " + c.Name + ". No secret is in this file: keys are in gate.key and clients/.\n" +
		"# Unknown keys are errors. \"spa-server check\" reads it without touching anything.\n\n")
	setting(b, "version", strconv.Itoa(strict.Version), "of this file's format")
	setting(b, "name", quote(c.Name), "what new clients call this gateway")
	setting(b, "address", quote(c.Address), "where clients find it; written into their tokens")
	setting(b, "server_id", quote(c.ServerID.String()), "")
	b.WriteString("#   packets for another server id are ignored: clients have it in their tokens, so never change it\n")
	setting(b, "knock_ports", c.knockPortsText(), "UDP; if the host itself serves it: { port = 443, shared = true }")
	setting(b, "window", quote(service.FormatDuration(c.Window)), "how far a client's clock may be off")
	setting(b, "receipts", strconv.FormatBool(c.Receipts), "answer clients: opened until when, or why not")
	setting(b, "state", quote(relative(c.Dir, c.State)), "journal, lock and ledger; relative to this file")
	changed(b, c.Zone != "", "zone", quote(c.Zone), `zone = "Europe/Berlin"`, "the time zone of hours (when = ...); "+
		"the machine's own by default")
}

func (c Config) writeTables(b *strings.Builder) {
	b.WriteString("\n[capture]\n")
	setting(b, "mode", quote(c.Capture.Mode), "sniff: sees knocks before the firewall drops them; udp: binds the ports")
	setting(b, "interfaces", list(c.Capture.Interfaces), "empty: all except loopback, including later ones")
	changed(b, c.Capture.Browser, "browser", "true", "browser = true", "take knocks that a page in a browser sends: "+
		"spa-keygen page")
	setting(b, "gate", quote(c.Capture.Gate), "where the kernel drops forged knocks: auto, xdp, socket or none")
	c.Firewall.write(b)
	b.WriteString("\n[audit]\n")
	file := relative(c.State, c.Audit.File)
	if c.Audit.Journal {
		file = auditJournal
	}
	setting(b, "file", quote(file), "one JSON line per decision; relative to state. journal: systemd's")
	c.Metrics.write(b)
	b.WriteString("\n# Per client.\n[limits]\n")
	setting(b, "live_nonces", strconv.Itoa(c.Limits.LiveNonces), "packets within the window")
	setting(b, "grants", strconv.Itoa(c.Limits.Grants), "open at a time")
	setting(b, "grants_per_hour", strconv.Itoa(c.Limits.GrantsPerHour), "")
	c.Fleet.write(b, c.Dir, c.State)
	b.WriteString("\n")
}

func (f Firewall) write(b *strings.Builder) {
	b.WriteString("\n[firewall]\n")
	setting(b, "backend", quote(f.Backend), "auto, nftables, iptables, or dry-run: decide and record, open "+
		"nothing; ends earlier grants")
	setting(b, "mode", quote(f.Mode), "guard: shuts the services' ports, opens nothing that other rules shut")
	setting(b, "closed", quote(f.Closed), "drop or reject, like the host's other closed ports")
	setting(b, "trusted_interfaces", list(f.TrustedInterfaces), "every guarded port is open from these")
	changed(b, f.Persist != "owner", "persist", quote(f.Persist), `persist = "file"`,
		"your own rule file holds the guard too: spa-server guard --print")
	changed(b, f.TPROXY, "tproxy", "true", "tproxy = true", "accept packets that TPROXY rules assign to "+
		"sockets, even of guarded ports")
	changed(b, f.Mark != 0, "mark", fmt.Sprintf("0x%08x", f.Mark), "mark = 0x20000000",
		"the connection mark's bit, if another tool uses this one")
	f.Admit.write(b)
}

func (a Admit) write(b *strings.Builder) {
	if a == (Admit{}) {
		example(b, "[firewall.admit]",
			`with mode = "admit": sets (flags timeout) of your own table, which shuts the ports itself`)
		example(b, `table = "inet filter"`, "")
		example(b, `set4 = "spa4"`, "grants go in here: type ipv4_addr . inet_proto . inet_service")
		example(b, `set6 = "spa6"`, "type ipv6_addr . inet_proto . inet_service")
		return
	}
	b.WriteString("\n[firewall.admit]\n")
	setting(b, "table", quote(a.Family+" "+a.Table), "your own table, which shuts the ports itself")
	if a.Set4 != "" {
		setting(b, "set4", quote(a.Set4), "grants go in here: type ipv4_addr . inet_proto . inet_service")
	}
	if a.Set6 != "" {
		setting(b, "set6", quote(a.Set6), "type ipv6_addr . inet_proto . inet_service")
	}
}

func (s Service) write(b *strings.Builder) {
	fmt.Fprintf(b, "[service.%s]\n", s.Name)
	ports := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		ports[i] = p.String()
	}
	if len(ports) > 0 {
		setting(b, "ports", list(ports), "guarded: shut to all but granted addresses")
	}
	setting(b, "for", quote(service.FormatDuration(s.For)), "open for new connections, unless the client asks otherwise")
	setting(b, "max_for", quote(service.FormatDuration(s.MaxFor)), "the most a client may ask for")
	s.writeRest(b)
	b.WriteString("\n")
}

// writeRest writes the settings that most services leave at their default.
func (s Service) writeRest(b *strings.Builder) {
	addresses := make([]string, len(s.Addresses))
	for i, a := range s.Addresses {
		addresses[i] = a.String()
	}
	changed(b, len(addresses) > 0, "addresses", list(addresses), `addresses = ["198.51.100.5"]`,
		"where the service is, if not on this host")
	s.writeForward(b)
	changed(b, s.Cuts(), "on_expiry", quote(s.OnExpiry), `on_expiry = "cut"`,
		"end its sessions with the grant; keep leaves them alone")
	changed(b, s.Once, "once", "true", "once = true", "only the first connection gets in; a new knock admits another")
	changed(b, len(s.When) > 0, "when", list(service.SpanTexts(s.When)), `when = ["mon-fri 08:00-18:00"]`,
		"shut at other times; over midnight: \"fri 22:00-02:00\"")
	s.Action.write(b)
}

// changed writes a setting that is not at its default, and otherwise an example of it as a comment.
func changed(b *strings.Builder, is bool, key, value, instead, comment string) {
	if is {
		setting(b, key, value, comment)
		return
	}
	example(b, instead, comment)
}

// example writes a line that is valid without its comment sign.
func example(b *strings.Builder, line, comment string) {
	if comment != "" {
		line = fmt.Sprintf("%-28s  # %s", line, comment)
	}
	b.WriteString("# " + line + "\n")
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

// relative returns a path below dir relative to it, and any other unchanged.
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

// quote returns a TOML basic string. Of the control characters only \t, \n and \r are spelt the same in Go and TOML;
// paths with others are refused when the file is read back.
func quote(s string) string { return strconv.Quote(s) }
