package survey

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/local"
)

// Read reads the rule sets and interfaces of the calling thread's network namespace. It needs CAP_NET_ADMIN. If it
// cannot read a part, it returns an error together with a rule set of the rest. The caller must
// close a returned rule set.
func Read(ctx context.Context) (*Ruleset, error) {
	route, err := local.Dial()
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	links, err := readLinks(route)
	if err != nil {
		return nil, errors.Join(err, route.Close())
	}
	k, err := openKernel()
	if err != nil {
		return nil, errors.Join(err, route.Close())
	}
	r := &Ruleset{Links: links, tables: make(map[tableKey]*table), sets: k}
	r.toward = func(to netip.Addr) (int, error) { return local.Toward(route, to) }
	r.close = func() error { return errors.Join(k.socket.Close(), route.Close()) }
	if err := errors.Join(k.tables(r), r.readMarks(route)); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	unread := r.addSaved(ctx)
	r.order()
	return r, unread
}

func (r *Ruleset) readMarks(c *netlink.Conn) error {
	var err error
	if r.Marks, err = local.Rules(c); errors.Is(err, unix.EOPNOTSUPP) { // a kernel without routing rules
		return nil
	}
	return err
}

// order lists the base chains by priority.
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

func readLinks(c *netlink.Conn) ([]Link, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	links := make([]Link, 0, len(interfaces))
	for _, i := range interfaces {
		l := Link{Name: i.Name, Index: i.Index, Up: i.Flags&net.FlagUp != 0, Loopback: i.Flags&net.FlagLoopback != 0}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("listing addresses of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				l.Prefixes = append(l.Prefixes, prefix)
			}
		}
		links = append(links, l)
	}
	return links, addMore(c, links)
}

// addMore adds what package net does not report.
func addMore(c *netlink.Conn, links []Link) error {
	routes, err := local.Read(c)
	if err != nil {
		return err
	}
	more, err := local.Links(c)
	if err != nil {
		return err
	}
	for i := range links {
		l, about := &links[i], more[links[i].Index]
		l.AltNames = about.AltNames
		l.addLocal(routes)
		switch about.Kind {
		case "vlan":
			l.lower = about.Lower
		case "bridge":
			l.Bridge = &Bridge{Calls4: about.Calls4, Calls6: about.Calls6}
			for _, port := range more {
				if port.Master == l.Index {
					l.Bridge.Ports++
				}
			}
		}
	}
	return nil
}

// addLocal adds the local routes other than those of the interface's addresses and of the loopback network.
func (l *Link) addLocal(routes []local.Route) {
	for _, r := range routes {
		if r.Link == l.Index && !r.Prefix.Addr().IsLoopback() && !(r.Prefix.IsSingleIP() && l.Own(r.Prefix.Addr())) {
			l.Local = append(l.Local, r.Prefix)
		}
	}
}
