package survey

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"sallyport/firewall/internal/local"
)

// Read reads the rule sets and interfaces of the calling thread's network namespace. It needs
// CAP_NET_ADMIN. What cannot be read is said in an error that wraps ErrNotRead; the rule set
// is good for the rest then. Close has to be called if there is one.
func Read(ctx context.Context) (*Ruleset, error) {
	links, err := readLinks()
	if err != nil {
		return nil, err
	}
	k, err := openKernel()
	if err != nil {
		return nil, err
	}
	r := &Ruleset{Links: links, tables: make(map[tableKey]*table), sets: k, close: k.socket.Close}
	if err := k.tables(r); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	unread := r.addSaved(ctx)
	r.order()
	return r, unread
}

// order makes the list of base chains.
func (r *Ruleset) order() {
	for _, t := range r.tables {
		for _, c := range t.chains {
			if c.hook != noHook && c.hook != elsewhere {
				r.bases = append(r.bases, c)
			}
		}
	}
	sortBases(r.bases)
}

func readLinks() ([]Link, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("survey: listing interfaces: %w", err)
	}
	links := make([]Link, 0, len(interfaces))
	for _, i := range interfaces {
		l := Link{Name: i.Name, Index: i.Index, Up: i.Flags&net.FlagUp != 0, Loopback: i.Flags&net.FlagLoopback != 0}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("survey: listing addresses of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				l.Prefixes = append(l.Prefixes, prefix)
			}
		}
		links = append(links, l)
	}
	return links, addMore(links)
}

// addMore adds what package net does not tell.
func addMore(links []Link) error {
	c, err := local.Dial()
	if err != nil {
		return fmt.Errorf("survey: opening rtnetlink: %w", err)
	}
	routes, err := local.Read(c)
	names, err2 := local.Names(c)
	if err = errors.Join(err, err2, c.Close()); err != nil {
		return fmt.Errorf("survey: %w", err)
	}
	for i := range links {
		links[i].AltNames = names[links[i].Index]
		links[i].addLocal(routes)
	}
	return nil
}

// addLocal adds the local routes that are not those of the interface's addresses. The loopback network is
// nobody's address.
func (l *Link) addLocal(routes []local.Route) {
	for _, r := range routes {
		if r.Link == l.Index && !r.Prefix.Addr().IsLoopback() && !(r.Prefix.IsSingleIP() && l.Own(r.Prefix.Addr())) {
			l.Local = append(l.Local, r.Prefix)
		}
	}
}
