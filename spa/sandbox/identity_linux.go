package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// identity is who the process will be.
type identity struct {
	name     string
	uid, gid int
	change   bool     // is not who it is now
	notes    []string // why it stays who it is
}

// choose finds the system user, or says why the process stays who it is.
func choose(name string) (identity, error) {
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) || errors.Is(err, fs.ErrNotExist) {
		return stay("there is no system user " + name + " (useradd --system " + name + ")"), nil
	}
	if err != nil {
		return identity{}, fmt.Errorf("sandbox: looking up user %s: %w", name, err)
	}
	who := identity{name: name}
	if who.uid, err = strconv.Atoi(u.Uid); err != nil {
		return identity{}, fmt.Errorf("sandbox: user %s: uid %q: %w", name, u.Uid, err)
	}
	if who.gid, err = strconv.Atoi(u.Gid); err != nil {
		return identity{}, fmt.Errorf("sandbox: user %s: gid %q: %w", name, u.Gid, err)
	}
	return who.decide()
}

func becomes(name string) (int, error) {
	who, err := choose(name)
	return who.uid, err
}

// decide is whether the process can and should become who.
func (who identity) decide() (identity, error) {
	if who.uid == 0 || who.gid == 0 {
		return identity{}, fmt.Errorf("sandbox: user %s is root (uid %d, gid %d): it must be one of its own",
			who.name, who.uid, who.gid)
	}
	if os.Getuid() == who.uid && os.Getgid() == who.gid {
		return who, nil
	}
	if os.Getuid() != 0 {
		return stay("user " + who.name + " is for a start as root"), nil
	}
	mapped, err := isMapped(who)
	if err != nil {
		return identity{}, err
	}
	if !mapped {
		return stay("user " + who.name + " has no number in this user namespace"), nil
	}
	who.change = true
	return who, nil
}

func stay(why string) identity {
	uid := os.Getuid()
	note := fmt.Sprintf("%s, so it stays uid %d", why, uid)
	if uid == 0 {
		note += ", who owns most files"
	}
	return identity{name: strconv.Itoa(uid), uid: uid, gid: os.Getgid(), notes: []string{note}}
}

// isMapped reports whether user and group exist in this process's user namespace.
func isMapped(who identity) (bool, error) {
	for path, id := range map[string]int{"/proc/self/uid_map": who.uid, "/proc/self/gid_map": who.gid} {
		text, err := os.ReadFile(path)
		if err != nil {
			return false, fmt.Errorf("sandbox: is user %s mapped: %w", who.name, err)
		}
		if !mapHolds(string(text), id) {
			return false, nil
		}
	}
	return true, nil
}

// mapHolds reports whether a map in the form of user_namespaces(7), lines of first id
// inside, first id outside and count, maps id.
func mapHolds(text string, id int) bool {
	for line := range strings.Lines(text) {
		var first, outside, count int
		if _, err := fmt.Sscan(line, &first, &outside, &count); err != nil {
			return false
		}
		if id >= first && id-first < count {
			return true
		}
	}
	return false
}

// become changes user and groups. It returns the supplementary groups that stay,
// which are none except where nobody may clear them.
func become(who identity, groups []int) ([]int, []string, error) {
	if !who.change && len(groups) == 0 {
		return nil, nil, nil
	}
	if !who.change && !maySetGroups() {
		return groups, []string{fmt.Sprintf("the supplementary groups %v stay: "+
			"this process may not clear them", slices.Compact(slices.Clone(groups)))}, nil
	}
	if err := cap.SetGroups(who.gid); err != nil {
		return nil, nil, fmt.Errorf("sandbox: clearing the groups (needs CAP_SETGID): %w", err)
	}
	if !who.change {
		return nil, nil, nil
	}
	if err := cap.SetUID(who.uid); err != nil {
		return nil, nil, fmt.Errorf("sandbox: becoming user %s (needs CAP_SETUID): %w", who.name, err)
	}
	return nil, nil, nil
}

// maySetGroups is whether the kernel would allow it: not without the capability, and not in a
// user namespace that an ordinary user made.
func maySetGroups() bool {
	policy, err := os.ReadFile("/proc/self/setgroups")
	return permitted(cap.SETGID) && err == nil && strings.TrimSpace(string(policy)) == "allow"
}
