// Package nftables implements the guard as an nftables table and, in mode Admit, grants as elements of the
// administrator's own sets. It uses only netlink.
package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/keeper"
	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

const (
	TableName = "spa"
	// markerChain is an empty chain without a hook. Its presence marks the table as ours.
	markerChain = "sallyport"
)

// Backend keeps the guard in nf_tables over netlink.
type Backend struct {
	Spec    guard.Spec
	Objects objects
	Conn    *nft.Conn
	Socket  *netlink.Conn // of Conn
	Events  *netlink.Conn // changes by other sockets
	// concerns reports whether the backend must respond to such a change.
	concerns func(netlink.Message) bool
	missed   atomic.Bool // such a change may have been missed
	Lacks    []string
	learned  map[string][]nft.SetElement // learned by the guard that was there before, by the name of the set
	known    uint64                      // the handle of the table loaded last; 0: none

	own    bool           // the table should have an owner, and the kernel supports that
	Keeper *keeper.Keeper // of the table; nil: none
	lock   *os.File       // the keeper's lock file
	// relayed is whether there may be a standby table: see BehindRelay.
	relayed bool
}

var _ guard.Backend = (*Backend)(nil)

// New opens the sockets, probes the kernel and starts the keeper. In mode Admit it checks that the sets exist.
func New(c guard.Spec) (guard.Backend, error) {
	n := &Backend{Spec: c, Objects: NewObjects(c.Size), concerns: concernsUs}
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if c.Mode == guard.ModeGuard {
		return n, nil
	}
	a := newAdmitting(n)
	if err := a.check(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return a, nil
}

func (n *Backend) open() error {
	var err error
	if n.Conn, n.Socket, err = Dial(); err != nil {
		return explain("opening netlink", err)
	}
	if n.Lacks, err = n.probe(); err != nil {
		return err
	}
	if err := n.canForward(n.Spec); err != nil {
		return err
	}
	if err := n.prepareToOwn(); err != nil {
		return err
	}
	if n.Events, err = nl.Changes(n.Socket.PID()); err != nil {
		return explain("listening for changes of the rule set", err)
	}
	return nil
}

// Dial opens a lasting connection, and returns its socket too.
func Dial() (*nft.Conn, *netlink.Conn, error) {
	var socket *netlink.Conn
	size := func(c *netlink.Conn) error {
		socket = c
		return nl.Size(c)
	}
	conn, err := nft.New(nft.AsLasting(), nft.WithSockOptions(size))
	return conn, socket, err
}

// explain adds to an errno of the kernel what was being done and what the errno means for a guard.
func explain(doing string, err error) error {
	switch {
	case errors.Is(err, unix.ENFILE):
		return fmt.Errorf("%w: the kernel takes no more elements into the set", guard.ErrFull)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: %s: %w", guard.ErrGone, doing, err)
	}
	return nl.Explain(doing, err)
}

func (n *Backend) Name() string { return guard.Nftables }

func (n *Backend) Describe() string {
	s := "nftables, table inet spa, closed=" +
		map[guard.Closed]string{guard.Drop: "drop", guard.Reject: "reject"}[n.closed()]
	if n.Persists() {
		s += ", owned: no other tool can change it"
	}
	if n.Spec.Mode == guard.ModeGuard && n.Spec.Persist == guard.PersistOwner && !n.own {
		s += ", which another tool can flush, since tables can have an owner only from Linux 6.9 on: guarded ports are " +
			"then open until the guard is back, " +
			"or until the server starts if it is not running (put the output of \"spa-server guard --print\" into " +
			"/etc/nftables.conf, with persist = \"file\")"
	}
	for i, what := range n.Lacks {
		s += map[bool]string{true: "; this kernel lacks ", false: " and "}[i == 0] + what
	}
	return s
}

// closed returns what packets without a grant get, as far as the kernel supports it.
func (n *Backend) closed() guard.Closed {
	if slices.Contains(n.Lacks, lacksReject) {
		return guard.Drop
	}
	return n.Spec.Closed
}

func (n *Backend) Processes() []guard.Process {
	if !n.Keeper.Lives() {
		return nil
	}
	return []guard.Process{{Name: keeper.Name, PID: n.Keeper.PID, Privileges: n.Keeper.Privileges}}
}

func (n *Backend) Close() error {
	errs := []error{n.Keeper.Leave()}
	if n.lock != nil {
		errs = append(errs, n.lock.Close())
	}
	if n.Conn != nil {
		errs = append(errs, n.Conn.CloseLasting())
	}
	if n.Events != nil {
		errs = append(errs, n.Events.Close())
	}
	return errors.Join(errs...)
}

func (n *Backend) Permanent() error {
	var b batch
	b.force(n.Objects.Guarded, PortElements(n.Spec.Guarded, 0), false)
	b.force(n.Objects.cut, PortElements(n.Spec.Cut, 0), false)
	b.force(n.Objects.once.ports, PortElements(n.Spec.Once, 0), false)
	return explain("making the guard permanent", b.send(n.Socket))
}

// Entered reports whether a counter in the confirm chain is above zero.
func (n *Backend) Entered() (bool, error) {
	rules, err := n.Conn.GetRules(n.Objects.Table, n.Objects.Confirm)
	if err != nil {
		return false, fmt.Errorf("reading the counters of new flows: %w", err)
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok && c.Packets > 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

// Carried lists the flows that the table in place carries.
func (n *Backend) Carried() ([]guard.Carried, error) {
	t, err := n.present()
	if err != nil || t.Handle == 0 {
		return nil, err
	}
	var flows []guard.Carried
	for _, s := range []*nft.Set{n.Objects.Carried4, n.Objects.Carried6} {
		es, err := n.Elements(s)
		if errors.Is(err, unix.ENOENT) {
			continue // the table was made for mode Admit, or another tool changed it
		}
		if err != nil {
			return nil, err
		}
		for _, e := range es {
			flows = append(flows, guard.Carried{Flow: FlowOf(e.Key), Remaining: e.Expires})
		}
	}
	return flows, nil
}

// Elements lists a set. For a missing set it returns ENOENT, which the library turns into plain text.
func (n *Backend) Elements(s *nft.Set) ([]nft.SetElement, error) {
	es, err := n.Conn.GetSetElements(s)
	if err == nil {
		return es, nil
	}
	if _, missing := n.Conn.GetSetByName(s.Table, s.Name); missing != nil {
		err = missing
	}
	return nil, err
}

// In keys with several fields each field takes a multiple of four bytes.

// grantElements returns the leases as elements, by the set that they belong to.
func (o *objects) grantElements(ls []guard.Lease) map[*nft.Set][]nft.SetElement {
	es := make(map[*nft.Set][]nft.SetElement)
	for _, l := range ls {
		s, key := o.setOf(l.Element)
		if s == nil {
			continue // only an end: see lacks
		}
		es[s] = append(es[s], nft.SetElement{
			Key:     PortKey(key, l.Proto, l.Port),
			Timeout: max(l.Remaining, time.Millisecond),
		})
	}
	return es
}

// longestKey is the size of a key with two IPv6 addresses, protocol and port.
const longestKey = 16 + 16 + 4 + 4

// setOf returns the set that an element belongs to, and the beginning of its key.
func (o *objects) setOf(e guard.Element) (*nft.Set, []byte) {
	key := append(make([]byte, 0, longestKey), e.Source.AsSlice()...)
	six := e.Source.Is6()
	switch {
	case e.Bits != 0:
		s, _ := e.Span()
		if e.To.IsValid() {
			key = append(key, e.To.AsSlice()...)
		}
		return o.setOfNetwork(s, e.To.IsValid()), key
	case e.Link != 0:
		return o.near, slices.Concat(Native(e.Link), key)
	case e.To.IsValid() && six:
		return o.reach6, append(key, e.To.AsSlice()...)
	case e.To.IsValid():
		return o.reach4, append(key, e.To.AsSlice()...)
	case six:
		return o.Grants6, key
	}
	return o.Grants4, key
}

// targetElements returns the ports of targets as elements.
func targetElements(ts []guard.Target, timeout time.Duration) (v4, v6 []nft.SetElement) {
	for _, t := range ts {
		for _, a := range t.Addresses {
			a = guard.Normal(a)
			all := ledger.Holding{Ports: t.Ports}
			all.Each(func(e guard.Element) {
				el := nft.SetElement{Key: PortKey(a.AsSlice(), e.Proto, e.Port), Timeout: timeout}
				if a.Is4() {
					v4 = append(v4, el)
				} else {
					v6 = append(v6, el)
				}
			})
		}
	}
	return v4, v6
}

// PortKey appends protocol and port to the beginning of a key.
func PortKey(key []byte, proto service.Proto, port uint16) []byte {
	key = append(slices.Grow(key, 8), byte(proto), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(key, port), 0, 0)
}

// PortElements returns the ports of the ranges as elements.
func PortElements(ranges []service.Ports, timeout time.Duration) []nft.SetElement {
	var es []nft.SetElement
	all := ledger.Holding{Ports: ranges}
	all.Each(func(e guard.Element) {
		es = append(es, nft.SetElement{Key: PortKey(nil, e.Proto, e.Port), Timeout: timeout})
	})
	return es
}

// FlowElements returns flows as elements.
func FlowElements(fs []guard.Carried) (v4, v6 []nft.SetElement) {
	for _, f := range fs {
		key := slices.Concat(f.Remote.Addr().AsSlice(), f.Local.Addr().AsSlice())
		key = PortKey(key, f.Proto, f.Remote.Port())
		key = append(binary.BigEndian.AppendUint16(key, f.Local.Port()), 0, 0)
		e := nft.SetElement{Key: key, Timeout: max(f.Remaining, time.Millisecond)} // the kernel reads zero as no timeout
		if f.Remote.Addr().Is4() {
			v4 = append(v4, e)
			continue
		}
		v6 = append(v6, e)
	}
	return v4, v6
}

// FlowOf returns the flow of a key that FlowElements made.
func FlowOf(key []byte) guard.Flow {
	size := (len(key) - 12) / 2
	remote, _ := netip.AddrFromSlice(key[:size])
	local, _ := netip.AddrFromSlice(key[size : 2*size])
	rest := key[2*size:]
	return guard.Flow{
		Proto:  service.Proto(rest[0]),
		Remote: netip.AddrPortFrom(remote, binary.BigEndian.Uint16(rest[4:])),
		Local:  netip.AddrPortFrom(local, binary.BigEndian.Uint16(rest[8:])),
	}
}

// addressElements returns the addresses of targets as elements.
func addressElements(ts []guard.Target) (v4, v6 []nft.SetElement) {
	for _, t := range ts {
		for _, a := range t.Addresses {
			a = guard.Normal(a)
			if e := (nft.SetElement{Key: a.AsSlice()}); a.Is4() {
				v4 = append(v4, e)
			} else {
				v6 = append(v6, e)
			}
		}
	}
	return v4, v6
}
