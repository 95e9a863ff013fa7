package place

import (
	"fmt"
	"slices"
)

// An accessList lists who has access to a file on Windows, where files have access lists instead of modes. Users and
// groups are SIDs ("S-1-5-18").
type accessList struct {
	owner   string
	reader  string // the user of this process
	missing bool   // there is no list: everyone has access
	entries []accessEntry
}

// An accessEntry allows a user or group something.
type accessEntry struct {
	who  string // empty: unknown
	mask uint32
}

// Besides the user, these may have access: they can take it on every file anyway.
const (
	sidSystem         = "S-1-5-18"
	sidAdministrators = "S-1-5-32-544"
	sidOwnerRights    = "S-1-3-4" // whoever is the owner
)

// touching are the rights to read a secret or to replace it. The rights to see the file and its access list are not
// among them.
const touching = 0x1 | // read data
	0x2 | 0x4 | // write data, append
	0x40 | // delete a child
	0x10000 | // delete
	0x40000 | 0x80000 | // change the list, take ownership
	0x02000000 | 0x10000000 | 0x40000000 | 0x80000000 // the maximum, all, generic write, generic read

// trouble describes what is wrong; empty if nothing is.
func (a accessList) trouble() string {
	trusted := []string{a.reader, sidSystem, sidAdministrators}
	if !slices.Contains(trusted, a.owner) {
		return "it belongs to another user"
	}
	if a.missing {
		return "it has no access list, so everybody has access"
	}
	for _, e := range a.entries {
		if e.mask&touching == 0 || slices.Contains(trusted, e.who) || e.who == sidOwnerRights {
			continue
		}
		if e.who == "" {
			return "its access list has an entry of an unknown type"
		}
		return fmt.Sprintf("%s has access to it", e.who)
	}
	return ""
}

// mend returns the command that leaves the file to its user alone.
func (a accessList) mend(path string) string {
	command := fmt.Sprintf(`icacls "%s" /reset && icacls "%[1]s" /inheritance:r /grant *%s:F`, path, a.reader)
	if a.owner != a.reader {
		command = fmt.Sprintf(`takeown /f "%s" && `, path) + command
	}
	return command
}
