package nftables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nl"
)

// In mode Admit no flow is marked, carried or confirmed: another table shuts the ports.

// Taken returns nothing: mode Admit has no such ports.
func (a *Admitting) Taken() ([]guard.Element, error) { return nil, nil }

func (a *Admitting) Carried() ([]guard.Carried, error) { return nil, nil }
func (a *Admitting) Entered() (bool, error)            { return false, nil }
func (a *Admitting) Permanent() error                  { return nil }

func (a *Admitting) Remove() error {
	return errors.Join(a.endIn(a.sets()), a.Backend.Remove())
}

// endIn deletes our elements from the sets that exist.
func (n *Backend) endIn(sets []*nft.Set) error {
	var errs []error
	for _, s := range sets {
		es, err := n.Elements(s)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, explain("listing the set "+s.Name, err))
		}
		for _, e := range es {
			if e.Comment != OurComment {
				continue
			}
			var b batch // one batch each: an element that expires in between must not fail the others
			b.add(unix.NFT_MSG_DELSETELEM, s, []nft.SetElement{{Key: e.Key}})
			if err := b.send(n.Socket); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, explain("ending grants in the set "+s.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// endAdmitted deletes our elements from all sets of all tables except these. A process without the configuration does
// not know which sets were used.
func (n *Backend) endAdmitted(but []*nft.Set) error {
	tables, err := n.Conn.ListTables()
	if err != nil {
		return explain("listing tables", err)
	}
	var like []*nft.Set
	for _, t := range tables {
		if t.Family == nft.TableFamilyINet && t.Name == TableName {
			continue
		}
		sets, err := n.Conn.GetSets(t)
		if err != nil {
			continue // a table with sets of unknown types; our elements in it expire on their own
		}
		for _, s := range sets {
			s.Table = t
			if slices.ContainsFunc(but, func(b *nft.Set) bool { return sameSet(b, s) }) {
				continue
			}
			if wrongWith(s, nil, n.Objects.Grants4) == "" || wrongWith(s, nil, n.Objects.Grants6) == "" {
				like = append(like, s)
			}
		}
	}
	return n.endIn(like)
}

func sameSet(a, b *nft.Set) bool {
	return a.Name == b.Name && a.Table.Name == b.Table.Name && a.Table.Family == b.Table.Family
}

// concernsSets reports whether a message is about our table, or about a loss from the administrator's sets.
func (a *Admitting) concernsSets(m netlink.Message) bool {
	if concernsUs(m) {
		return true
	}
	his := a.sets()[0].Table
	if family, name := nl.Table(m); family != byte(his.Family) || name != his.Name {
		return false
	}
	switch nl.Kind(m) {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
		return true
	}
	return false
}

// Wait makes Watch return when an element that stands in for ours has expired. The zero time cancels earlier calls.
func (a *Admitting) Wait(until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if until.IsZero() || a.again.IsZero() || until.Before(a.again) {
		a.again = until
	}
	if !until.IsZero() {
		a.Events.SetReadDeadline(time.Unix(1, 0)) // Watch may be waiting without a deadline
	}
}

func (a *Admitting) Watch(ctx context.Context, deadline time.Time) error {
	if err := a.wakeAt(deadline); err != nil {
		return fmt.Errorf("watching the rule set: %w", err)
	}
	err := a.await(ctx)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.again.IsZero() || time.Now().Before(a.again) {
		return err
	}
	a.again = time.Time{}
	return nil
}

// wakeAt sets the earlier of deadline and the time from Wait. The lock keeps it from overwriting a concurrent Wait.
func (a *Admitting) wakeAt(deadline time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.again.IsZero() && (deadline.IsZero() || a.again.Before(deadline)) {
		deadline = a.again
	}
	return a.Events.SetReadDeadline(deadline)
}
