// Package config reads and writes server.toml, the administrator's settings of a gateway. The file holds no secret;
// keys are in files of their own (package keys).
//
// The file is read strictly. A key without effect is an error, with its line and what was probably meant: a misspelt
// setting must not be ignored in silence.
package config

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
)

// FileName is the name of the file in the server's directory.
const FileName = "server.toml"

// Config is a server's configuration, with all defaults filled in.
type Config struct {
	Dir        string // absolute: the directory of server.toml
	Name       string // how clients call the gateway
	Address    string // where clients find it, in the form of keys.SplitAddress
	ServerID   keys.ServerID
	KnockPorts []KnockPort   // at least one
	Window     time.Duration // how far a stamp may be off, on both sides
	Receipts   bool          // answer spent packets
	State      string        // absolute: journal, lock, ledger
	Zone       string        // the time zone of all hours ("Europe/Berlin"); empty: the machine's own

	Capture  Capture
	Firewall Firewall
	Audit    Audit
	Metrics  Metrics
	Limits   Limits
	Fleet    Fleet
	Services []Service // sorted by name

	read []byte // the text of the file
}

// KnockPort is a UDP port that carries knocks.
type KnockPort struct {
	Port   uint16
	Shared bool // the host itself serves it too, so connection tracking sees its packets
}

// Capture configures how packets are captured.
type Capture struct {
	Mode       string   // "sniff" or "udp"
	Interfaces []string // none: all but loopback
	Browser    bool     // take knocks of browsers too, in STUN requests
	Gate       string   // "auto", "xdp", "socket" or "none": where the gate tag is checked first
}

// Bound reports whether the server binds the knock ports, in place of capturing their packets.
func (c *Config) Bound() bool { return c.Capture.Mode == "udp" }

// Firewall configures how ports are kept shut.
type Firewall struct {
	Backend           string // "auto", "nftables", "iptables" or "dry-run"
	Mode              string // "guard" or "admit"
	Closed            string // "drop" or "reject"
	Persist           string // "owner" or "file"
	TrustedInterfaces []string
	TPROXY            bool   // accept packets that TPROXY rules assign to sockets
	Mark              uint32 // the bit of the connection mark; zero: the firewall's default
	Admit             Admit  // of mode "admit" only
}

// Admit names the sets of the administrator's own table that grants go into.
type Admit struct {
	Family     string // "inet", "ip" or "ip6"
	Table      string
	Set4, Set6 string // for each address family; empty: none, and no grants in that family
}

// Audit configures where decisions are recorded.
type Audit struct {
	File    string // absolute; empty with Journal
	Journal bool   // in the journal of systemd instead
}

// auditJournal is what server.toml has in place of a file's name for the journal of systemd.
const auditJournal = "journal"

// Metrics configures the page that Prometheus reads.
type Metrics struct {
	Listen  string // "127.0.0.1:9620", "[::1]:9620" or "unix:/run/spa/metrics.sock"; empty: there is no page
	Clients bool   // also count by client: then the page has their names
}

// Limits hold for each client.
type Limits struct {
	LiveNonces, Grants, GrantsPerHour int
}

// Service is something that clients can open by name.
type Service struct {
	Name        string
	Ports       []service.Ports // none only if it has an action
	For, MaxFor time.Duration   // if the client requests none, and at most
	Addresses   []netip.Addr    // where it is; none: at all addresses of this host
	OnExpiry    string          // what happens to its sessions when the grant ends: "keep" or "cut"
	Once        bool            // the first connection to a port takes the grant for it with it
	When        []service.Span  // when it may be opened; none: always
	Action      Action          // programs that run when a grant begins and ends

	// Forward is where its ports lead: a machine behind this host, by one address of each family at most, or another
	// port of this host, without an address. None: nowhere.
	Forward    []netip.AddrPort
	Masquerade bool // the machine sees this host's address as the source
}

// Default returns the configuration of a minimal file, for the server in dir: everything except Name, Address and
// ServerID.
func Default(dir string) Config {
	return Config{
		Dir:        dir,
		KnockPorts: []KnockPort{{Port: 62201}},
		Window:     30 * time.Second,
		Receipts:   true,
		State:      dir,
		Capture:    Capture{Mode: "sniff", Gate: "auto"},
		Firewall:   Firewall{Backend: "auto", Mode: "guard", Closed: "drop", Persist: "owner"},
		Audit:      Audit{File: filepath.Join(dir, "audit.jsonl")},
		Limits:     Limits{LiveNonces: 256, Grants: 64, GrantsPerHour: 1000},
	}
}

// Defaults of a service.
const (
	defaultFor    = 30 * time.Second
	defaultMaxFor = 10 * time.Minute
	keepSessions  = "keep"
	cutSessions   = "cut"
)

// Location returns the time zone of the hours in the file.
func (c *Config) Location() *time.Location {
	if c.Zone == "" {
		_ = time.Local.String() // reads the machine's zone, once: a server that has given up its privileges could not
		return time.Local
	}
	zone, err := time.LoadLocation(c.Zone)
	if err != nil {
		return time.UTC // Load refuses such a name
	}
	return zone
}

// Text returns the file that the configuration was read from. [Parse] can read it again.
func (c *Config) Text() []byte { return c.read }

// Cuts reports whether the sessions of the service end with its grant.
func (s Service) Cuts() bool { return s.OnExpiry == cutSessions }

// Service returns the service with this name.
func (c *Config) Service(name string) (Service, bool) {
	i, ok := slices.BinarySearchFunc(c.Services, name, func(s Service, name string) int {
		return strings.Compare(s.Name, name)
	})
	if !ok {
		return Service{}, false
	}
	return c.Services[i], true
}

// Guarded returns the ports of all services, sorted, each range once.
func (c *Config) Guarded() []service.Ports {
	var all []service.Ports
	for _, s := range c.Services {
		all = append(all, s.Ports...)
	}
	slices.SortFunc(all, func(a, b service.Ports) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(all)
}
