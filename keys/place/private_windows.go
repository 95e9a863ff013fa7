package place

import (
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// checkAccess reads the file's access list: modes mean nothing here.
func checkAccess(_ Folder, path string, _ fs.FileInfo, _ fs.FileMode) error {
	a, err := accessListOf(path)
	if err != nil {
		return fmt.Errorf("checking who has access to %s: %w", path, err)
	}
	if trouble := a.trouble(); trouble != "" {
		return fmt.Errorf("%s: %w: %s: %s", path, ErrExposed, trouble, a.mend(path))
	}
	return nil
}

func accessListOf(path string) (accessList, error) {
	me, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return accessList{}, err
	}
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return accessList{}, err
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return accessList{}, err
	}
	a := accessList{owner: owner.String(), reader: me.User.Sid.String()}
	dacl, _, err := sd.DACL()
	if err != nil || dacl == nil {
		a.missing = true
		return a, nil
	}
	a.entries, err = entriesOf(dacl)
	return a, err
}

// Kinds of entries of an access list (winnt.h). Of the kinds that allow, those for objects
// of a directory service have their SID elsewhere, and do not occur on files.
const (
	aceAllowed         = 0x0
	aceDenied          = 0x1
	aceAllowedCallback = 0x9
	aceDeniedCallback  = 0xa
)

func entriesOf(dacl *windows.ACL) ([]accessEntry, error) {
	var entries []accessEntry
	for i := range uint32(dacl.AceCount) {
		var ace *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(dacl, i, &ace); err != nil {
			return nil, err
		}
		if ace.Header.AceFlags&windows.INHERIT_ONLY_ACE != 0 {
			continue // for what is made below, not for this
		}
		switch ace.Header.AceType {
		case aceDenied, aceDeniedCallback:
			// what is denied exposes nothing
		case aceAllowed, aceAllowedCallback:
			sid := (*windows.SID)(unsafe.Pointer(&ace.SidStart))
			entries = append(entries, accessEntry{who: sid.String(), mask: uint32(ace.Mask)})
		default:
			entries = append(entries, accessEntry{mask: ^uint32(0)})
		}
	}
	return entries, nil
}

// give leaves a new file, which is still empty, to its user alone, whatever it would inherit from the directory.
func give(f *os.File, _ string, _ Audience) error {
	me, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return err
	}
	sd, err := windows.SecurityDescriptorFromString("D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;" + me.User.Sid.String() + ")")
	if err != nil {
		return err
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	return windows.SetNamedSecurityInfo(f.Name(), windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, dacl, nil)
}

// checkReadable refuses nothing: servers run where files have modes.
func checkReadable(Folder, string, fs.FileInfo) error { return nil }

func (Folder) denied(_ string, err error) error { return err }

func (d Folder) Named() Folder { return d }
