package nftables

import (
	"errors"
	"slices"
	"strings"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nl"
)

// EndGrants empties the grant sets of a guard in the kernel, and deletes our elements from the administrator's sets.
func EndGrants(spec guard.Spec) (stands bool, err error) {
	conn, socket, err := Dial()
	if err != nil {
		return false, explain("opening netlink", err)
	}
	n := &Backend{Spec: spec, Objects: NewObjects(guard.Size), Conn: conn, Socket: socket}
	defer n.Close()
	if err := n.endAdmitted(nil); err != nil {
		return false, err
	}
	t, err := n.present()
	if errors.Is(err, guard.ErrForeign) || err == nil && t.Handle == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if t.Flags&(TableOwner|TablePersist) == 0 {
		return n.flushGrants()
	}
	return endInOwned(spec)
}

// endInOwned takes over the table of an earlier keeper, because no other process can change it, and empties its grant
// sets.
func endInOwned(spec guard.Spec) (stands bool, err error) {
	spec.Mode, spec.Persist = guard.ModeGuard, guard.PersistOwner
	b, err := New(spec)
	if err != nil {
		return false, err
	}
	n := b.(*Backend)
	err = n.BehindRelay(guard.Plan{}, func() error {
		if err := n.release(); err != nil {
			return err
		}
		flags := n.Flags()
		var b batch
		b.table(unix.NFT_MSG_NEWTABLE, TableName, &flags)
		if err := b.send(n.Socket); err != nil {
			return explain("taking over the guard", err)
		}
		stands, err = n.flushGrants()
		return err
	})
	n.Keeper.Hold()
	return stands, errors.Join(err, n.EndRelay(), n.Close())
}

// flushGrants empties every set of grants in the table, including sets with the names of another version. A table
// without any is not a guard: in mode Admit another table shuts the ports.
func (n *Backend) flushGrants() (stands bool, err error) {
	sets, err := n.Conn.GetSets(n.Objects.Table)
	if err != nil {
		return false, explain("listing the sets of the guard", err)
	}
	for _, s := range sets {
		ours := func(set *nft.Set) bool { return set.Name == s.Name }
		if strings.HasPrefix(s.Name, "grants") ||
			slices.ContainsFunc([]*nft.Set{n.Objects.reach4, n.Objects.reach6, n.Objects.near}, ours) {
			stands = true
			n.Conn.FlushSet(&nft.Set{Table: n.Objects.Table, Name: s.Name})
		}
	}
	return stands, explain("ending grants", n.Conn.Flush())
}

// Available reports whether the kernel has nf_tables.
func Available() bool {
	conn, err := nft.New(nft.AsLasting())
	if err != nil {
		return false
	}
	defer conn.CloseLasting()
	_, err = conn.ListTablesOfFamily(nft.TableFamilyINet)
	return err == nil
}

// InPlace reports whether our table is in this network namespace.
func InPlace() (bool, error) {
	conn, err := nft.New(nft.AsLasting())
	if err != nil {
		return false, explain("opening netlink", err)
	}
	defer conn.CloseLasting()
	tables, err := conn.ListTablesOfFamily(nft.TableFamilyINet)
	if err != nil && !nl.NoNftables(err) {
		return false, explain("looking for the table", err)
	}
	return slices.ContainsFunc(tables, func(t *nft.Table) bool { return t.Name == TableName }), nil
}
