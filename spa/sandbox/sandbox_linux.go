package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// secured is what is locked: no capabilities by being uid 0, by changing the uid, by keeping them over
// such a change or by the ambient set. See capabilities(7).
const secured = cap.SecbitNoRoot | cap.SecbitNoRootLocked |
	cap.SecbitNoSetUIDFixup | cap.SecbitNoSetUIDFixupLocked |
	cap.SecbitKeepCapsLocked |
	cap.SecbitNoCapAmbientRaise | cap.SecbitNoCapAmbientRaiseLocked

// remains is what a thread may have left: what is read back must equal it.
type remains struct {
	uid, gid   int
	groups     []int
	bounding   uint64
	securebits cap.Secbits
}

func drop(name string) (State, error) {
	before, err := readTask("/proc/thread-self/status")
	if err != nil {
		return State{}, err
	}
	who, err := choose(name)
	if err != nil {
		return State{}, err
	}
	left, notes, err := giveUp(who, before)
	if err != nil {
		return State{}, err
	}
	if err := verify(left); err != nil {
		return State{}, err
	}
	return State{
		User: who.name, UID: who.uid, GID: who.gid,
		Capabilities: "CAP_NET_ADMIN", NoNewPrivs: true,
		Notes: append(who.notes, notes...),
	}, nil
}

// giveUp does it in the only order that works: user and groups first, while the
// capabilities to change them are there, the capabilities themselves last. Package cap
// sets them on all threads.
func giveUp(who identity, before task) (remains, []string, error) {
	groups, notes, err := become(who, before.groups)
	if err != nil {
		return remains{}, nil, err
	}
	left := remains{uid: who.uid, gid: who.gid, groups: groups, securebits: secured}
	if permitted(cap.SETPCAP) {
		err = shutTheWayBack()
	} else {
		left.bounding, left.securebits = before.bounding, cap.GetSecbits()
		notes = append(notes, "CAP_SETPCAP was not given, so bounding set and securebits stay as they were, "+
			"and only no_new_privs keeps capabilities from coming back")
	}
	if err != nil {
		return remains{}, nil, err
	}
	return left, notes, keepNetAdmin()
}

// shutTheWayBack empties the bounding set and locks the securebits.
func shutTheWayBack() error {
	if err := raise(cap.SETPCAP); err != nil {
		return fmt.Errorf("sandbox: raising CAP_SETPCAP: %w", err)
	}
	all := make([]cap.Value, cap.MaxBits())
	for i := range all {
		all[i] = cap.Value(i)
	}
	if err := cap.DropBound(all...); err != nil {
		return fmt.Errorf("sandbox: emptying the bounding set: %w", err)
	}
	if err := secured.Set(); err != nil {
		return fmt.Errorf("sandbox: locking the securebits: %w", err)
	}
	return nil
}

// keepNetAdmin gives up all other capabilities; the ambient ones go with the inheritable ones.
func keepNetAdmin() error {
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("sandbox: setting no_new_privs: %w", err)
	}
	left := cap.NewSet()
	for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
		if err := left.SetFlag(flag, true, cap.NET_ADMIN); err != nil {
			return fmt.Errorf("sandbox: keeping CAP_NET_ADMIN: %w", err)
		}
	}
	if err := left.SetProc(); err != nil {
		return fmt.Errorf("sandbox: keeping CAP_NET_ADMIN only: %w", err)
	}
	if _, err := cap.Prctl(unix.PR_SET_DUMPABLE, 0); err != nil {
		return fmt.Errorf("sandbox: switching core files off: %w", err)
	}
	return nil
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

func require() error {
	var missing []string
	for _, need := range []struct {
		value cap.Value
		name  string
	}{{cap.NET_ADMIN, "CAP_NET_ADMIN"}, {cap.NET_RAW, "CAP_NET_RAW"}} {
		has, err := cap.GetProc().GetFlag(cap.Effective, need.value)
		if err != nil || !has {
			missing = append(missing, need.name)
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("sandbox: lacking %s: run it as root, or give the unit "+
		"AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW: %w", strings.Join(missing, " and "), unix.EPERM)
}
