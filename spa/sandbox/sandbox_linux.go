package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// secured are the locked securebits: no capabilities through uid 0, through changing the uid, by keeping them across
// such a change, or through the ambient set. See capabilities(7).
const secured = cap.SecbitNoRoot | cap.SecbitNoRootLocked |
	cap.SecbitNoSetUIDFixup | cap.SecbitNoSetUIDFixupLocked |
	cap.SecbitKeepCapsLocked |
	cap.SecbitNoCapAmbientRaise | cap.SecbitNoCapAmbientRaiseLocked

// remains is what a thread may have left. It is compared with what the kernel reports.
type remains struct {
	uid, gid    int
	groups      []int
	kept        capabilities // permitted and effective
	inheritable capabilities
	ambient     capabilities
	bounding    capabilities
	securebits  cap.Secbits
}

// part is the role of a process: what it may keep apart from user and groups.
type part struct {
	kept      capabilities
	programs  bool // it starts programs, which have the same rights
	calls     []call
	forbidden []uintptr
}

func drop(name string, files Files) (State, error) {
	who, err := choose(name)
	if err != nil {
		return State{}, err
	}
	p := part{kept: setOf(cap.NET_ADMIN), calls: forDaemon(), forbidden: neverOf(false)}
	var rules ruleset
	// Root may lack the right to search other users' directories.
	err = OrAs(name, func() (err error) { rules, err = newRuleset(files, p.programs); return err })
	if err != nil {
		return State{}, err
	}
	return dropTo(who, p, rules)
}

func dropForPrograms(files Files) (State, error) {
	kept := setOf(cap.NET_ADMIN)
	if permitted(cap.NET_RAW) { // for the older kind of iptables; a server with bound sockets may lack it
		kept = setOf(cap.NET_ADMIN, cap.NET_RAW)
	}
	rules, err := newRuleset(files, true)
	if err != nil {
		return State{}, err
	}
	return dropTo(whoItIs(), part{kept: kept, programs: true, calls: forPrograms(), forbidden: neverOf(true)}, rules)
}

func dropAll() (State, error) {
	rules, err := newRuleset(Files{}, false)
	if err != nil {
		return State{}, err
	}
	return dropTo(whoItIs(), part{calls: forKeeper(), forbidden: neverOf(false)}, rules)
}

// whoItIs returns the process's current identity.
func whoItIs() identity {
	return identity{name: strconv.Itoa(os.Getuid()), uid: os.Getuid(), gid: os.Getgid()}
}

// dropTo leaves the process only what its part needs, and verifies that. The rules were made while the paths could be
// reached.
func dropTo(who identity, p part, rules ruleset) (State, error) {
	before, err := readTask("/proc/thread-self/status")
	if err != nil {
		return State{}, err
	}
	missing := lacks()
	left, notes, err := giveUp(who, p, before)
	if err != nil {
		return State{}, err
	}
	if err := verify(left); err != nil {
		return State{}, err
	}
	calls, err := shut(rules, p)
	if err != nil {
		return State{}, err
	}
	return State{
		User: who.name, UID: who.uid, GID: who.gid,
		Capabilities: left.kept.String(), Bounding: left.bounding.String(), NoNewPrivs: true,
		Landlock: rules.abi, Calls: calls,
		Notes: slices.Concat(who.notes, notes, missing),
	}, nil
}

// shut forbids files and system calls as far as the kernel can, and returns how many system calls are left.
func shut(rules ruleset, p part) (calls int, err error) {
	// Opened now: afterwards the process cannot open anything in /proc.
	tasks, err := openTasks()
	if err != nil {
		return 0, err
	}
	defer tasks.close()
	if err := rules.enforce(); err != nil || noFilter() != nil {
		return 0, err
	}
	if err := filter(program(p.calls, p.forbidden)); err != nil {
		return 0, err
	}
	return countOf(p.calls), tasks.verifyFilter()
}

// countOf counts distinct calls.
func countOf(list []call) int {
	numbers := make(map[uintptr]bool)
	for _, c := range list {
		numbers[c.number] = true
	}
	return len(numbers)
}

// giveUp drops user and groups first, while the process has the capabilities for that, and then the capabilities: no
// other order works. Package cap sets them on all threads.
func giveUp(who identity, p part, before task) (remains, []string, error) {
	left := remains{uid: who.uid, gid: who.gid, kept: p.kept, securebits: cap.GetSecbits(), bounding: before.bounding}
	var notes []string
	var err error
	if left.groups = before.groups; !p.programs {
		if left.groups, notes, err = become(who, before.groups); err != nil {
			return remains{}, nil, err
		}
	}
	if p.programs {
		left.inheritable = p.kept
		if os.Getuid() != 0 { // root's programs have them because they run as root
			left.ambient = p.kept
		}
	}
	if permitted(cap.SETPCAP) {
		err = shutTheWayBack(&left, p)
	} else if left.bounding&^setOf(cap.NET_ADMIN, cap.NET_RAW) != 0 {
		notes = append(notes, "CAP_SETPCAP was not given, so bounding set and securebits stay as they were, "+
			"and only no_new_privs keeps capabilities from coming back")
	}
	if err != nil {
		return remains{}, nil, err
	}
	return left, notes, keep(left)
}

// shutTheWayBack removes everything from the bounding set that is not inherited, and locks the securebits if no program
// may gain anything.
func shutTheWayBack(left *remains, p part) error {
	if err := raise(cap.SETPCAP); err != nil {
		return fmt.Errorf("raising CAP_SETPCAP: %w", err)
	}
	var gone []cap.Value
	for v := range cap.MaxBits() {
		if !left.inheritable.has(v) {
			gone = append(gone, v)
		}
	}
	if err := cap.DropBound(gone...); err != nil {
		return fmt.Errorf("emptying the bounding set: %w", err)
	}
	left.bounding &= left.inheritable
	if p.programs {
		return nil
	}
	if err := secured.Set(); err != nil {
		return fmt.Errorf("locking the securebits: %w", err)
	}
	left.securebits = secured
	return nil
}

// keep drops all other capabilities; the ambient ones go with the inheritable ones.
func keep(left remains) error {
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("setting no_new_privs: %w", err)
	}
	set := cap.NewSet()
	if err := errors.Join(
		set.SetFlag(cap.Permitted, true, left.kept.values()...),
		set.SetFlag(cap.Effective, true, left.kept.values()...),
		set.SetFlag(cap.Inheritable, true, left.inheritable.values()...),
	); err != nil {
		return fmt.Errorf("keeping %v: %w", left.kept, err)
	}
	if err := set.SetProc(); err != nil {
		return fmt.Errorf("keeping %v only: %w", left.kept, err)
	}
	if err := cap.SetAmbient(true, left.ambient.values()...); err != nil {
		return fmt.Errorf("handing %v on: %w", left.ambient, err)
	}
	if _, err := cap.Prctl(unix.PR_SET_DUMPABLE, 0); err != nil {
		return fmt.Errorf("switching core files off: %w", err)
	}
	return nil
}

func lacks() []string {
	var texts []string
	if err := noLandlock(); err != nil {
		texts = append(texts, fmt.Sprintf("files are not restricted: %v", err))
	}
	if err := noFilter(); err != nil {
		texts = append(texts, fmt.Sprintf("system calls are not filtered: %v", err))
	}
	return texts
}

// capabilities is a set of capabilities, in the format of /proc.
type capabilities uint64

func setOf(values ...cap.Value) capabilities {
	var set capabilities
	for _, v := range values {
		set |= 1 << v
	}
	return set
}

func (c capabilities) has(v cap.Value) bool { return c>>v&1 == 1 }

func (c capabilities) values() []cap.Value {
	var values []cap.Value
	for v := range cap.MaxBits() {
		if c.has(v) {
			values = append(values, v)
		}
	}
	return values
}

// String returns "CAP_NET_ADMIN, CAP_NET_RAW", or "" for an empty set.
func (c capabilities) String() string {
	var names []string
	for _, v := range c.values() {
		names = append(names, strings.ToUpper(v.String()))
	}
	return strings.Join(names, ", ")
}

func raise(value cap.Value) error {
	set := cap.GetProc()
	if err := set.SetFlag(cap.Effective, true, value); err != nil {
		return err
	}
	return set.SetProc()
}

// permitted reports whether the process can raise the capability.
func permitted(value cap.Value) bool {
	has, err := cap.GetProc().GetFlag(cap.Permitted, value)
	return err == nil && has
}

func require(raw bool) error {
	var missing []string
	for _, need := range []struct {
		value cap.Value
		name  string
	}{{cap.NET_ADMIN, "CAP_NET_ADMIN"}, {cap.NET_RAW, "CAP_NET_RAW"}} {
		if need.value == cap.NET_RAW && !raw {
			continue
		}
		has, err := cap.GetProc().GetFlag(cap.Effective, need.value)
		if err != nil || !has {
			missing = append(missing, need.name)
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("lacking %s: run it as root, or give the unit "+
		"AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW: %w", strings.Join(missing, " and "), unix.EPERM)
}
