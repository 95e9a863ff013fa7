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

// identity is the user and groups that the process will have.
type identity struct {
	name     string
	uid, gid int
	change   bool     // differs from the current one
	notes    []string // why the process keeps its identity
}

// choose returns the system user, or, if there is none, the user that the process becomes or stays.
func choose(name string) (identity, error) {
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) || errors.Is(err, fs.ErrNotExist) {
		return withoutUser(name)
	}
	if err != nil {
		return identity{}, fmt.Errorf("looking up user %s: %w", name, err)
	}
	who := identity{name: name}
	if who.uid, err = strconv.Atoi(u.Uid); err != nil {
		return identity{}, fmt.Errorf("user %s: uid %q: %w", name, u.Uid, err)
	}
	if who.gid, err = strconv.Atoi(u.Gid); err != nil {
		return identity{}, fmt.Errorf("user %s: gid %q: %w", name, u.Gid, err)
	}
	return who.decide()
}

func becomes(name string) (uid, gid int, err error) {
	who, err := choose(name)
	return who.uid, who.gid, err
}

// withoutUser returns the identity of a process on a machine without the system user.
func withoutUser(name string) (identity, error) {
	missing := fmt.Sprintf("there is no system user %s (useradd --system --no-create-home --shell "+
		"/usr/sbin/nologin %[1]s)", name)
	if os.Getuid() != 0 {
		return stay(missing)
	}
	number := strconv.Itoa(Unnamed)
	if _, err := user.LookupId(number); err == nil {
		return identity{}, fmt.Errorf("%s, and %s, which has no name elsewhere, is a user here", missing, number)
	}
	if _, err := user.LookupGroupId(number); err == nil {
		return identity{}, fmt.Errorf("%s, and %s, which has no name elsewhere, is a group here", missing, number)
	}
	who := identity{name: number, uid: Unnamed, gid: Unnamed,
		notes: []string{missing + ", so it becomes the user " + number + ", which has no name and owns nothing"}}
	return who.enter(missing)
}

// decide reports whether the process can and should change to who.
func (who identity) decide() (identity, error) {
	if who.uid == 0 || who.gid == 0 {
		return identity{}, fmt.Errorf("user %s is root (uid %d, gid %d): it must be one of its own",
			who.name, who.uid, who.gid)
	}
	if os.Getuid() == who.uid && os.Getgid() == who.gid {
		return who, nil
	}
	if os.Getuid() != 0 {
		return stay("user " + who.name + " is for a start as root")
	}
	return who.enter("user " + who.name + " has no number in this user namespace")
}

// enter returns who if its numbers exist in this namespace, or else why the process stays.
func (who identity) enter(otherwise string) (identity, error) {
	mapped, err := isMapped(who)
	if err != nil {
		return identity{}, err
	}
	if !mapped {
		return stay(otherwise)
	}
	who.change = true
	return who, nil
}

// stay keeps the current user. It must not be root, nor in root's group: uid 0 owns most files, whatever its
// capabilities. Only if it is the one user of its namespace is there no other to become; there it has no more rights
// than the user who made the namespace.
func stay(why string) (identity, error) {
	uid, gid := os.Getuid(), os.Getgid()
	alone, err := isAlone()
	if err != nil {
		return identity{}, err
	}
	if (uid == 0 || gid == 0) && !alone {
		return identity{}, fmt.Errorf("%s, and it must not stay root (uid %d, gid %d)", why, uid, gid)
	}
	note := fmt.Sprintf("%s, so it stays uid %d", why, uid)
	if uid == 0 {
		note += ", the only user of this namespace"
	}
	return identity{name: strconv.Itoa(uid), uid: uid, gid: gid, notes: []string{note}}, nil
}

// isAlone reports whether the process's user namespace has one user.
func isAlone() (bool, error) {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false, fmt.Errorf("which users there are: %w", err)
	}
	users := int64(0)
	for _, r := range parseMap(string(text)) {
		users += r.count
	}
	return users == 1, nil
}

// isMapped reports whether user and group exist in this process's user namespace.
func isMapped(who identity) (bool, error) {
	for path, id := range map[string]int{"/proc/self/uid_map": who.uid, "/proc/self/gid_map": who.gid} {
		text, err := os.ReadFile(path)
		if err != nil {
			return false, fmt.Errorf("is user %s mapped: %w", who.name, err)
		}
		if !mapHolds(string(text), id) {
			return false, nil
		}
	}
	return true, nil
}

// mapHolds reports whether a map contains the id.
func mapHolds(text string, id int) bool {
	return slices.ContainsFunc(parseMap(text), func(r mapRange) bool {
		return int64(id) >= r.first && int64(id)-r.first < r.count
	})
}

// mapRange is a line of a map of user_namespaces(7): ids of 32 bits, even if an int has no more.
type mapRange struct{ first, outside, count int64 }

func parseMap(text string) []mapRange {
	var ranges []mapRange
	for line := range strings.Lines(text) {
		var r mapRange
		if _, err := fmt.Sscan(line, &r.first, &r.outside, &r.count); err != nil {
			return nil
		}
		ranges = append(ranges, r)
	}
	return ranges
}

// become changes user and groups. It returns the supplementary groups that remain because the process cannot clear
// them.
func become(who identity, groups []int) ([]int, []string, error) {
	if !who.change && len(groups) == 0 {
		return nil, nil, nil
	}
	if !who.change && !maySetGroups() {
		if alone, err := isAlone(); err != nil || slices.Contains(groups, 0) && !alone {
			return nil, nil, errors.Join(errors.New("it must not stay in the group of root"), err)
		}
		if who.gid != 0 && !slices.ContainsFunc(groups, func(gid int) bool { return gid != who.gid }) {
			return groups, nil, nil // a service manager lists the user's own group there too
		}
		return groups, []string{fmt.Sprintf("the supplementary groups %v stay: "+
			"this process may not clear them", slices.Compact(slices.Clone(groups)))}, nil
	}
	if err := cap.SetGroups(who.gid); err != nil {
		return nil, nil, fmt.Errorf("clearing the groups (needs CAP_SETGID): %w", err)
	}
	if !who.change {
		return nil, nil, nil
	}
	if err := cap.SetUID(who.uid); err != nil {
		return nil, nil, fmt.Errorf("becoming user %s (needs CAP_SETUID): %w", who.name, err)
	}
	return nil, nil, nil
}

// maySetGroups reports whether the kernel would allow it: it needs the capability, and does not work in a user
// namespace made by an ordinary user.
func maySetGroups() bool {
	policy, err := os.ReadFile("/proc/self/setgroups")
	return permitted(cap.SETGID) && err == nil && strings.TrimSpace(string(policy)) == "allow"
}
