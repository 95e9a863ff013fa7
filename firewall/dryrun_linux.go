package firewall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ipset"
	"sallyport/firewall/internal/ledger"
)

// endEarlier ends all that earlier runs granted: a dry run can revoke none of it. A guard that
// stands stays, and lets nobody in; to take it away would open the host.
func (f *Firewall) endEarlier(now time.Time) error {
	if f.cfg.State == "" { // the dry run of no gateway
		return nil
	}
	err := f.endRecorded(now)
	if err == nil {
		err = f.endEnforced()
	}
	if err != nil {
		return fmt.Errorf("a dry run cannot start while grants of an earlier run may be open (spa-server "+
			"teardown ends them): %w", err)
	}
	return nil
}

// endRecorded erases what the ledger holds, so that no later start brings it back.
func (f *Firewall) endRecorded(now time.Time) error {
	if _, err := os.Lstat(filepath.Join(f.cfg.State, ledger.FileName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	l, err := openLedger(&f.cfg)
	if err != nil {
		return err
	}
	return errors.Join(l.Alone(func() error {
		hs, err := l.Read(now)
		for _, h := range hs {
			if err := l.Erase(h); err != nil {
				return err
			}
			f.log.Warn("grant ended, because a dry run could not revoke it",
				"client", h.Client, "service", h.Service, "source", h.Source.String(), "ports", fmt.Sprint(h.Ports))
		}
		return err
	}), l.Close())
}

// endEnforced ends what the kernel holds, by whichever backend it was put there.
func (f *Firewall) endEnforced() error {
	stands, err := f.endInNft()
	if err != nil && !noNftables(err) {
		return err
	}
	kinds, err := leftover()
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		if err := endInSets(); err != nil {
			return fmt.Errorf("in the sets of iptables (%s): %w", kind, err)
		}
	}
	if stands || len(kinds) > 0 {
		f.log.Warn("the guard of an earlier run is in place and lets nobody in, because this is a dry run; to remove " +
			"it: spa-server teardown")
	}
	return nil
}

// endInNft empties the sets of grants of a guard that stands, and takes what is ours out of the
// administrator's sets.
func (f *Firewall) endInNft() (stands bool, err error) {
	conn, socket, err := dial()
	if err != nil {
		return false, explain("opening netlink", err)
	}
	n := &nftables{spec: f.cfg.spec(), objects: newObjects(setSize), conn: conn, socket: socket}
	defer n.close()
	if err := n.endAdmitted(nil); err != nil {
		return false, err
	}
	t, err := n.present()
	if errors.Is(err, ErrForeign) || err == nil && t.handle == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if t.flags&(tableOwner|tablePersist) == 0 {
		return n.flushGrants()
	}
	return f.endInOwned()
}

// endInOwned makes the table of an earlier keeper that of a new one, since nobody else can change it.
func (f *Firewall) endInOwned() (stands bool, err error) {
	spec := f.cfg.spec()
	spec.Mode, spec.Persist = Guard, PersistOwner
	b, err := newNftables(spec)
	if err != nil {
		return false, err
	}
	n := b.(*nftables)
	err = n.behindRelay(guard.Plan{}, func() error {
		if err := n.release(); err != nil {
			return err
		}
		flags := n.flags()
		var b batch
		b.table(unix.NFT_MSG_NEWTABLE, tableName, &flags)
		if err := b.send(n.socket); err != nil {
			return explain("taking over the guard", err)
		}
		stands, err = n.flushGrants()
		return err
	})
	n.keeper.Hold()
	return stands, errors.Join(err, n.endRelay(), n.close())
}

// flushGrants empties every set of grants that the table has, also as another version named it. A
// table without one is no guard: in mode Admit another's table shuts the ports.
func (n *nftables) flushGrants() (stands bool, err error) {
	sets, err := n.conn.GetSets(n.objects.table)
	if err != nil {
		return false, explain("listing the sets of the guard", err)
	}
	for _, s := range sets {
		ours := func(set *nft.Set) bool { return set.Name == s.Name }
		if strings.HasPrefix(s.Name, "grants") ||
			slices.ContainsFunc([]*nft.Set{n.objects.reach4, n.objects.reach6, n.objects.near}, ours) {
			stands = true
			n.conn.FlushSet(&nft.Set{Table: n.objects.table, Name: s.Name})
		}
	}
	return stands, explain("ending grants", n.conn.Flush())
}

// endInSets ends what a guard of iptables has granted.
func endInSets() error {
	sets, err := ipset.Open()
	if errors.Is(err, unix.EPERM) {
		return err
	}
	if err != nil {
		return nil // no ipset in this kernel: nothing is in one
	}
	var errs []error
	for _, s := range leaseSets {
		errs = append(errs, sets.Empty(setName(s.name, s.v6)))
	}
	return errors.Join(append(errs, sets.Close())...)
}
