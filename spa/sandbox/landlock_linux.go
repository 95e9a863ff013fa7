package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Rights to files below a directory.
const (
	mayRead  = llsys.AccessFSReadFile | llsys.AccessFSReadDir
	mayWrite = mayRead | llsys.AccessFSWriteFile | llsys.AccessFSTruncate | llsys.AccessFSMakeReg | llsys.AccessFSRemoveFile
	mayRun   = mayRead | llsys.AccessFSExecute
	// ofFile are those that a file has too, which is no directory.
	ofFile = llsys.AccessFSReadFile | llsys.AccessFSWriteFile | llsys.AccessFSTruncate | llsys.AccessFSExecute
)

// A ruleset is what Landlock is to enforce. It is made while the paths can be reached, and
// enforced once the user has changed.
type ruleset struct {
	fd    int // -1: there is no Landlock
	flags uint32
	abi   int
}

// newRuleset makes one that forbids all that this kernel's Landlock can forbid but for the files:
// TCP and UDP, signals to others, sockets of others. A process with programs has to be able to end them.
func newRuleset(files Files, programs bool) (ruleset, error) {
	if noLandlock() != nil {
		return ruleset{fd: -1}, nil
	}
	config := landlock.V11
	if programs {
		// Each thread is in a domain of its own before version 8, and what it starts in that thread's.
		config.Scoped &^= llsys.ScopeSignal
		config.HandledAccessNet = 0
	}
	var rules []landlock.Rule
	if listsThreads {
		rules = append(rules, landlock.PathAccess(llsys.AccessFSReadDir, fmt.Sprintf("/proc/%d/task", os.Getpid())))
	}
	for _, part := range []struct {
		paths []string
		may   landlock.AccessFSSet
	}{{files.Read, mayRead}, {files.Write, mayWrite}, {files.Run, mayRun}} {
		for _, path := range part.paths {
			rule, err := ruleFor(path, part.may)
			if err != nil {
				return ruleset{}, err
			}
			rules = append(rules, rule)
		}
	}
	r := ruleset{}
	var err error
	if r.fd, r.flags, err = config.BestEffort().NewRulesetFD(rules...); err != nil {
		return ruleset{}, fmt.Errorf("sandbox: preparing Landlock: %w", err)
	}
	r.abi, err = llsys.LandlockGetABIVersion()
	return r, err
}

func ruleFor(path string, may landlock.AccessFSSet) (landlock.Rule, error) {
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if err == nil && !info.IsDir() {
		may &= ofFile
	}
	return landlock.PathAccess(may, path).IgnoreIfMissing(), nil
}

// enforce puts the rules in force on all threads, for good, and tries whether they are.
func (r ruleset) enforce() error {
	if r.fd < 0 {
		return nil
	}
	defer unix.Close(r.fd)
	const together = 8 // the first version that does all threads at once
	restrict := llsys.AllThreadsLandlockRestrictSelf
	flags := r.flags
	if r.abi >= together {
		restrict, flags = llsys.LandlockRestrictSelf, flags|llsys.FlagRestrictSelfTSync
	}
	if err := restrict(r.fd, flags); err != nil {
		return fmt.Errorf("sandbox: putting Landlock in force: %w", err)
	}
	root, err := os.Open("/")
	if err == nil {
		root.Close()
	}
	if !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("sandbox: Landlock is in force, and / can be opened all the same (%v)", err)
	}
	return nil
}

// noLandlock says why files cannot be restricted; nil: they can.
func noLandlock() error {
	if _, err := llsys.LandlockGetABIVersion(); err != nil {
		return fmt.Errorf("the kernel has no Landlock (%w)", err)
	}
	return nil
}
