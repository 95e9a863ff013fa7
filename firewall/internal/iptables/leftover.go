package iptables

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/nl"
)

// Leftover returns the kinds of iptables whose tables contain our chains. It runs no program and creates no table.
// The kernel does not tell users other than root which legacy tables there are: for them that kind is never there.
func Leftover() ([]string, error) {
	var kinds []string
	if there, err := leftInNft(); err != nil {
		return nil, err
	} else if there {
		kinds = append(kinds, kindNft)
	}
	there, err := leftInLegacy()
	if err != nil {
		return nil, err
	}
	if there {
		kinds = append(kinds, KindLegacy)
	}
	return kinds, nil
}

func leftInNft() (bool, error) {
	conn, err := nft.New(nft.AsLasting())
	if err != nil {
		return false, nl.Explain("opening netlink", err)
	}
	defer conn.CloseLasting()
	for _, family := range []nft.TableFamily{nft.TableFamilyIPv4, nft.TableFamilyIPv6} {
		chains, err := conn.ListChainsOfTableFamily(family)
		if nl.NoNftables(err) {
			return false, nil
		}
		if err != nil {
			return false, nl.Explain("looking for iptables chains", err)
		}
		for _, c := range chains {
			for _, t := range Tables() {
				if c.Table.Name == t.name && slices.Contains(t.chains, c.Name) {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

func leftInLegacy() (bool, error) {
	for _, v6 := range []bool{false, true} {
		path, domain := "/proc/thread-self/net/ip_tables_names", unix.AF_INET
		if v6 {
			path, domain = "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6
		}
		names, err := os.ReadFile(path) // asking for a missing table would create it
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			continue // only root may read the names
		}
		if err != nil {
			return false, fmt.Errorf("looking for iptables tables: %w", err)
		}
		there, err := leftInFamily(domain, v6, strings.Fields(string(names)))
		if err != nil || there {
			return there, err
		}
	}
	return false, nil
}

func leftInFamily(domain int, v6 bool, names []string) (bool, error) {
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	for _, t := range Tables() {
		if !slices.Contains(names, t.name) {
			continue
		}
		rules, err := legacyRules(fd, v6, t.name)
		if err != nil {
			return false, fmt.Errorf("reading table %s: %w", t.name, err)
		}
		for _, chain := range t.chains {
			if bytes.Contains(rules, append([]byte(chain), 0)) {
				return true, nil
			}
		}
	}
	return false, nil
}

// RemoveLeftover removes the guard that iptables of these kinds left.
func RemoveLeftover(kinds []string) error {
	for _, kind := range kinds {
		if err := removeKind(kind); err != nil {
			err = fmt.Errorf("removing the guard from the tables of iptables (%s): %w", kind, err)
			return errors.Join(err, lockHeld(kind))
		}
	}
	return nil
}

// lockHeld returns an error if a process holds the lock of iptables: the server's user can open it, and never release
// it.
func lockHeld(kind string) error {
	if kind != KindLegacy {
		return nil
	}
	lock, err := os.Open(LockPath)
	if err != nil {
		return nil // there is none
	}
	defer lock.Close()
	if !errors.Is(unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK) {
		return nil
	}
	return fmt.Errorf("fuser -v %s shows the process that holds the lock of iptables: end it, then try again", LockPath)
}

func removeKind(kind string) error {
	h, err := startHelper("", kind, "")
	if err != nil {
		return err
	}
	b := &Backend{Helper: h}
	if b.Sets, err = ipset.Open(); err != nil {
		b.Sets = nil // without ipset the guard had no sets
	}
	return errors.Join(b.Remove(), b.Close())
}

// RemoveSets removes sets of ours whose chains are already gone. It first checks for the ipset module, because a
// request to the kernel would load it.
func RemoveSets() error {
	const modules = "/sys/module"
	_, all := os.Stat(modules)
	if _, err := os.Stat(modules + "/ip_set"); all == nil && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	sets, err := ipset.Open()
	if errors.Is(err, unix.EPERM) {
		return err
	}
	if err != nil {
		return nil // this kernel has no ipset
	}
	return errors.Join(sets.Destroy(OurSets()...), sets.Close())
}

// EndGrants ends the grants of an iptables guard.
func EndGrants() error {
	sets, err := ipset.Open()
	if errors.Is(err, unix.EPERM) {
		return err
	}
	if err != nil {
		return nil // no ipset in this kernel, so no grants
	}
	var errs []error
	for _, s := range slices.Concat(leaseSets, netSets) {
		errs = append(errs, sets.Empty(SetName(s.name, s.v6)))
	}
	return errors.Join(append(errs, sets.Close())...)
}
