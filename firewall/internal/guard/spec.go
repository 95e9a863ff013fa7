package guard

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/sandbox"
)

// Spec holds the settings of a guard. A backend gets a copy with each load.
type Spec struct {
	Guarded []service.Ports // ports that only grants open, at every address of this host
	Targets []Target        // services at addresses of their own
	Knock   []KnockPort
	Closed  Closed
	Trusted []string // interfaces whose packets pass
	TPROXY  bool     // accept packets that TPROXY rules assign to sockets, even of guarded ports
	Mark    uint32   // our bit of connection and packet marks
	State   string   // the state directory
	User    string   // a system user that may own the files in State, besides root; empty: root only

	Mode    Mode
	Admit   AdmitSets       // used in mode ModeAdmit
	Cut     []service.Ports // guarded ports whose sessions end with the grant
	Once    []service.Ports // guarded ports at which a grant admits one flow
	Persist Persist
	// Networks means that clients may ask for grants for networks. A backend that takes long to begin with them gets
	// ready for that.
	Networks bool
	Spans    []Span // of the networks that grants may let in until the next load; none: no rule looks for any

	// Forwards are guarded ports that lead elsewhere. Guarded has the ports of this host that they lead to as well,
	// and Targets the machines.
	Forwards []Forward

	Now   func() time.Time // the clock for computing how long something still lives
	Size  uint32           // capacity of a set of grants for each family, in elements
	Plain bool             // the table has no owner, as on older kernels

	Programs string // where to look for iptables, in the form of PATH; empty: the usual directories
	Lock     string // the lock file of iptables; empty: the usual one
}

// Names of backends.
const (
	Nftables = "nftables"
	Iptables = "iptables"
)

// Size is the default of Spec.Size. It bounds the kernel memory that grants take.
const Size = 1 << 19

// Remembered is how long after its last packet the guard remembers a peer that a grant admitted. Within that time no
// UDP server here can begin a flow with that peer.
const Remembered = 7 * 24 * time.Hour

// Away is how long the guard remembers the interface by which a flow of a target leaves. AwaySize is to how many
// destinations: strangers may fill that.
const (
	Away     = 2 * time.Second
	AwaySize = 1 << 16
)

// LastHeaders are the IPv6 next-header values after which no extension header follows.
var LastHeaders = []byte{
	6, 17, 58, 50, 47, 4, 41, 132, // TCP, UDP, ICMPv6, ESP, GRE, IPv4, IPv6, SCTP
}

// Target is a service at addresses of its own: of machines behind this host, or some of the host's. Only a grant with
// the address in To reaches it; a grant without To does not.
type Target struct {
	Addresses []netip.Addr
	Ports     []service.Ports
}

// Closed is what packets without a grant get from a guarded port.
type Closed uint8

// Reject hides a host whose other closed ports answer; Drop hides any other.
const (
	Drop   Closed = iota // silence
	Reject               // TCP reset, ICMP port unreachable
)

// KnockPort is a UDP port on which knocks arrive. Unless it is Shared it is only ours: its packets bypass connection
// tracking, and the host answers as at any closed port. A shared port has a server of the host's own and is left
// alone.
type KnockPort struct {
	Port   uint16
	Shared bool
}

// Mode is what grants do in the host's firewall.
type Mode uint8

const (
	// ModeGuard shuts the guarded ports to all but clients with a grant.
	ModeGuard Mode = iota
	// ModeAdmit is for a host that drops by default: grants are elements of sets in the administrator's own table,
	// whose rules decide what they open.
	ModeAdmit
)

// AdmitSets are the sets that hold grants in mode Admit. Their keys are address . inet_proto . inet_service, and they
// have the timeout flag.
type AdmitSets struct {
	Family, Table string // "inet", "ip" or "ip6"; the table's name
	Set4, Set6    string // for IPv4 and IPv6 sources; one of them may be empty
}

// Persist is how the guard survives a flush of the rule set by another tool.
type Persist uint8

const (
	// PersistOwner makes the table our own if the kernel can: no other process can change or flush it, even while no
	// daemon runs.
	PersistOwner Persist = iota
	// PersistFile leaves the table without an owner, because the administrator's own rule file holds the guard as
	// firewall.Rules prints it. A table that has an owner cannot be loaded from a file.
	PersistFile
)

// Process is a process that works for the firewall besides the daemon.
type Process struct {
	Name       string
	PID        int
	Privileges sandbox.State // the privileges it still has
}

// Check returns an error for an invalid guard.
func (c *Spec) Check() error {
	if bits.OnesCount32(c.Mark) != 1 {
		return fmt.Errorf("mark %#x must be a single bit", c.Mark)
	}
	if c.Closed > Reject {
		return fmt.Errorf("unknown setting %d for closed ports", c.Closed)
	}
	for _, name := range c.Trusted {
		if err := service.ValidInterface(name); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	for _, p := range slices.Concat(c.Guarded, c.Cut, c.Once) {
		if err := CheckPorts(p); err != nil {
			return err
		}
	}
	for _, t := range c.Targets {
		if err := t.check(); err != nil {
			return err
		}
	}
	if c.Persist > PersistFile {
		return fmt.Errorf("unknown way to persist %d", c.Persist)
	}
	if err := c.checkForwards(); err != nil {
		return err
	}
	return c.checkMode()
}

func (c *Spec) checkMode() error {
	switch {
	case c.Mode == ModeGuard:
		return nil
	case c.Mode != ModeAdmit:
		return fmt.Errorf("unknown mode %d", c.Mode)
	case len(c.Once) > 0:
		return errors.New("in mode admit your own table decides how many connections a grant admits: remove once = true, " +
			"or use mode guard")
	case len(c.Cut) > 0:
		return errors.New("in mode admit your own table decides how long sessions last: for ports whose sessions should " +
			"end with the grant, leave them out of its rule for established connections, and do not change on_expiry")
	case !slices.Contains([]string{"inet", "ip", "ip6"}, c.Admit.Family):
		return fmt.Errorf("mode admit: unknown table family %q; use inet, ip or ip6", c.Admit.Family)
	case c.Admit.Table == "" || c.Admit.Set4 == "" && c.Admit.Set6 == "":
		return errors.New("mode admit needs the name of a table and of at least one set in it")
	}
	for _, name := range []string{c.Admit.Table, c.Admit.Set4, c.Admit.Set6} {
		if err := service.ValidTable(name); name != "" && err != nil {
			return fmt.Errorf("mode admit: %q: %w", name, err)
		}
	}
	return nil
}

// EveryPort returns all guarded ports, here or at a target.
func (c *Spec) EveryPort() []service.Ports {
	ports := slices.Clone(c.Guarded)
	for _, t := range c.Targets {
		ports = append(ports, t.Ports...)
	}
	slices.SortFunc(ports, ComparePorts)
	return slices.Compact(ports)
}

func (t *Target) check() error {
	for _, a := range t.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("a service cannot be at the address %v", a)
		}
	}
	for _, p := range t.Ports {
		if err := CheckPorts(p); err != nil {
			return err
		}
	}
	return nil
}
