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

// Spec is what a guard is made of. A backend gets it by value with each load: nothing changes beneath it.
type Spec struct {
	Guarded []service.Ports // ports that only grants open, at every address of this host
	Targets []Target        // services at addresses of their own
	Knock   []KnockPort
	Closed  Closed
	Trusted []string // interfaces whose packets pass
	TPROXY  bool     // accept packets that TPROXY rules assign to sockets, even of guarded ports
	Mark    uint32   // one bit of connection and packet marks that is ours
	State   string   // the state directory
	User    string   // a system user that may own the files of State, like root; empty: root alone

	Mode    Mode
	Admit   AdmitSets       // where Mode is ModeAdmit
	Cut     []service.Ports // guarded ports whose sessions end with the grant
	Persist Persist

	Now   func() time.Time // the clock by which it is computed how long something still lives
	Size  uint32           // elements that a set of grants holds in each family
	Plain bool             // the table has no owner, as on older kernels

	Programs string // where iptables is looked for, as PATH; empty: where systems have it
	Lock     string // the lock of iptables; empty: where systems have it
}

// Names of backends.
const (
	Nftables = "nftables"
	Iptables = "iptables"
)

// Size bounds the memory that grants take in the kernel, for each family.
const Size = 1 << 19

// Remembered is how long the guard knows after the last packet that somebody was admitted by a grant. Within that time
// no UDP server here begins a flow with that peer.
const Remembered = 7 * 24 * time.Hour

// LastHeaders are next headers behind which there is no further one.
var LastHeaders = []byte{
	6, 17, 58, 50, 47, 4, 41, 132, // TCP, UDP, ICMPv6, ESP, GRE, IPv4, IPv6, SCTP
}

// Target is a service at addresses of its own: of machines behind this host, or some of the
// host's. A grant reaches it only if it names the address in To, and a grant that names none
// does not.
type Target struct {
	Addresses []netip.Addr
	Ports     []service.Ports
}

// Closed says what a stranger gets from a guarded port.
type Closed uint8

// A host whose closed ports answer is hidden better by Reject, any other by Drop.
const (
	Drop   Closed = iota // silence
	Reject               // TCP reset, ICMP port unreachable
)

// KnockPort is a UDP port on which knocks arrive. One that is not Shared belongs to us
// alone: connection tracking does not see it, and the host answers as at any closed port. A
// shared one is served by the host itself and left alone.
type KnockPort struct {
	Port   uint16
	Shared bool
}

// Mode says what grants are to the host's firewall.
type Mode uint8

const (
	// ModeGuard shuts the guarded ports but for those that hold a grant.
	ModeGuard Mode = iota
	// ModeAdmit is for a host that drops by default: grants are elements of sets in the
	// administrator's own table, and his rules say what they open.
	ModeAdmit
)

// AdmitSets are the sets that grants go into in mode Admit. Their keys are address .
// inet_proto . inet_service, and they have the timeout flag.
type AdmitSets struct {
	Family, Table string // "inet", "ip" or "ip6"; the table's name
	Set4, Set6    string // for IPv4 and IPv6 sources; one may be empty
}

// Persist says who sees to it that the guard outlives a foreign flush of the rule set.
type Persist uint8

const (
	// PersistOwner makes the table our own, where the kernel can do that: nobody else
	// can change or flush it, also while no daemon runs.
	PersistOwner Persist = iota
	// PersistFile leaves the table without an owner, because the administrator's own
	// rule file holds the guard as Rules prints it. A table that has an owner cannot be
	// loaded from a file.
	PersistFile
)

// A Process is one that works for the firewall beside the daemon.
type Process struct {
	Name string
	PID  int
	Left sandbox.State // of its privileges
}

// Check returns an error for a guard that cannot be made.
func (c *Spec) Check() error {
	if bits.OnesCount32(c.Mark) != 1 {
		return fmt.Errorf("mark %#x must be a single bit", c.Mark)
	}
	if c.Closed > Reject {
		return fmt.Errorf("unknown way of closing %d", c.Closed)
	}
	for _, name := range c.Trusted {
		if err := service.ValidInterface(name); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	for _, p := range slices.Concat(c.Guarded, c.Cut) {
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
	return c.checkMode()
}

func (c *Spec) checkMode() error {
	switch {
	case c.Mode == ModeGuard:
		return nil
	case c.Mode != ModeAdmit:
		return fmt.Errorf("unknown mode %d", c.Mode)
	case len(c.Cut) > 0:
		return errors.New("in mode admit your own table decides how long sessions last: for ports whose sessions are to " +
			"end with the grant, leave them out of its rule for established connections, and on_expiry as it is")
	case !slices.Contains([]string{"inet", "ip", "ip6"}, c.Admit.Family):
		return fmt.Errorf("mode admit: %q is no family of tables; there are inet, ip and ip6", c.Admit.Family)
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

// EveryPort returns the ports that are guarded, here or at a target.
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
