package firewall

import (
	"errors"
	"io/fs"

	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/keeper"
	"sallyport/firewall/internal/nftables"
)

// KeeperFile is the name of the file in the state directory that the guard's keeper locks.
const KeeperFile = keeper.FileName

// XtablesLock is the lock of the legacy kind of iptables, which programs of all users of the host share.
const XtablesLock = iptables.LockPath

// EndOwnKeepers ends the keepers that this process's user started, in this network namespace. Root does so before a
// server starts that may not end a process of root. The guard stays.
func EndOwnKeepers() error { return keeper.EndOwn() }

// MayRunIptables reports whether a backend of the configuration runs the programs of iptables on this host.
func MayRunIptables(backend string) bool {
	return backend == BackendIptables || backend == BackendAuto && !nftables.Available()
}

// SweepIptables removes the guard of iptables if that of nftables is in place: a grant would open nothing if both
// were. A load does so too, but not every user can see all of it.
func SweepIptables() error {
	there, err := nftables.InPlace()
	if err != nil || !there {
		return err
	}
	kinds, err := iptables.Leftover()
	if err != nil {
		return err
	}
	return iptables.RemoveLeftover(kinds)
}

// HasKeeper reports whether a process keeps the guard by the file in a state directory.
func HasKeeper(state string) (bool, error) {
	file, err := keeper.OpenFile(state, "", false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	pid, err := keeper.LockHolder(file)
	return pid != 0, err
}
