package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Rights to files below a directory.
const (
	mayRead  = llsys.AccessFSReadFile | llsys.AccessFSReadDir
	mayWrite = mayRead | llsys.AccessFSWriteFile | llsys.AccessFSTruncate | llsys.AccessFSMakeReg |
		llsys.AccessFSRemoveFile
	mayRun  = mayRead | llsys.AccessFSExecute
	mayTalk = llsys.AccessFSResolveUnix
	// ofFile are the rights that also apply to regular files.
	ofFile = llsys.AccessFSReadFile | llsys.AccessFSWriteFile | llsys.AccessFSTruncate | llsys.AccessFSExecute
)

// ruleset is what Landlock should enforce. It is made while the paths can be reached, and enforced after the user has
// changed.
type ruleset struct {
	fd    int // -1: there is no Landlock
	flags uint32
	abi   int
}

// newRuleset makes a ruleset that forbids everything that this kernel's Landlock can forbid except the files: TCP and
// UDP, signals to others, sockets of others. A process with programs must be able to kill them.
func newRuleset(files Files, programs bool) (ruleset, error) {
	if noLandlock() != nil {
		return ruleset{fd: -1}, nil
	}
	config := landlock.V11
	if programs {
		// Before version 8 each thread is in its own domain, and its children are in that domain.
		config.Scoped &^= llsys.ScopeSignal
		config.HandledAccessNet = 0
	}
	r := ruleset{}
	var err error
	if r.fd, r.flags, err = config.BestEffort().NewRulesetFD(); err != nil {
		return ruleset{}, fmt.Errorf("preparing Landlock: %w", err)
	}
	if r.abi, err = llsys.LandlockGetABIVersion(); err == nil {
		err = r.allowFiles(files)
	}
	if err != nil {
		return ruleset{}, errors.Join(err, unix.Close(r.fd))
	}
	return r, nil
}

func (r ruleset) allowFiles(files Files) error {
	if listsThreads {
		if err := r.allow(fmt.Sprintf("/proc/%d/task", os.Getpid()), llsys.AccessFSReadDir); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		paths []string
		may   uint64
	}{{files.Read, mayRead}, {files.Write, mayWrite}, {files.Run, mayRun}, {files.Talk, mayTalk}} {
		for _, path := range part.paths {
			if err := r.allow(path, part.may); err != nil {
				return err
			}
		}
	}
	return nil
}

// allow grants rights to a file, or to everything below a directory. A path that does not exist needs no rule.
//
// go-landlock cannot make the call: it writes the descriptor as 64 bits and the kernel reads 32, so on 64-bit
// big-endian machines its rules name file 0.
func (r ruleset) allow(path string, may uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var file unix.Stat_t
	if err := unix.Fstat(fd, &file); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if file.Mode&unix.S_IFMT != unix.S_IFDIR {
		may &= ofFile
	}
	const truncates, talks = 3, 9 // the first versions with these rights
	if r.abi < truncates {
		may &^= llsys.AccessFSTruncate
	}
	if r.abi < talks {
		may &^= llsys.AccessFSResolveUnix
	}
	if may == 0 {
		return nil // the kernel takes no empty rule
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: may, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("preparing Landlock for %s: %w", path, errno)
	}
	return nil
}

// enforce puts the rules into force on all threads, irrevocably, and tests them.
func (r ruleset) enforce() error {
	if r.fd < 0 {
		return nil
	}
	defer unix.Close(r.fd)
	const together = 8 // the first version that covers all threads at once
	restrict := llsys.AllThreadsLandlockRestrictSelf
	flags := r.flags
	if r.abi >= together {
		restrict, flags = llsys.LandlockRestrictSelf, flags|llsys.FlagRestrictSelfTSync
	}
	if err := restrict(r.fd, flags); err != nil {
		return fmt.Errorf("putting Landlock in force: %w", err)
	}
	root, err := os.Open("/")
	if err == nil {
		root.Close()
	}
	if !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("with Landlock in force / can still be opened (%v)", err)
	}
	return nil
}

// noLandlock returns why files cannot be restricted, or nil if they can.
func noLandlock() error {
	if _, err := llsys.LandlockGetABIVersion(); err != nil {
		return fmt.Errorf("the kernel has no Landlock (%w)", err)
	}
	return nil
}
