package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nl"
)

// OurComment marks an element in the administrator's set as ours.
const OurComment = "sallyport"

// Admitting puts grants into the administrator's own sets. Our table then only keeps receipts out of connection
// tracking: otherwise a rule for established connections, which such hosts usually have, would let the receiver of a
// receipt reply to it.
//
// An element that is not ours is never changed or deleted. If the administrator has one for the same address and
// port, it stands in for ours as long as it lasts.
type Admitting struct {
	*Backend
	Set4, Set6 *nft.Set // nil: not configured

	mu sync.Mutex
	// again is when the first element that stands in for one of ours expires; zero: there is none.
	again time.Time
}

var _ guard.Backend = (*Admitting)(nil)

func newAdmitting(n *Backend) *Admitting {
	sets := n.Spec.Admit
	t := &nft.Table{Name: sets.Table, Family: familyOf(sets.Family)}
	a := &Admitting{Backend: n}
	like := func(name string, ours *nft.Set) *nft.Set {
		if name == "" {
			return nil
		}
		s := *ours
		s.Table, s.Name = t, name
		return &s
	}
	a.Set4, a.Set6 = like(sets.Set4, n.Objects.Grants4), like(sets.Set6, n.Objects.Grants6)
	n.concerns = a.concernsSets
	return a
}

func familyOf(name string) nft.TableFamily {
	return map[string]nft.TableFamily{
		"inet": nft.TableFamilyINet, "ip": nft.TableFamilyIPv4, "ip6": nft.TableFamilyIPv6,
	}[name]
}

func (a *Admitting) sets() []*nft.Set {
	var sets []*nft.Set
	for _, s := range []*nft.Set{a.Set4, a.Set6} {
		if s != nil {
			sets = append(sets, s)
		}
	}
	return sets
}

// check checks that the administrator's sets can hold grants.
func (a *Admitting) check() error {
	for _, s := range a.sets() {
		found, err := a.Conn.GetSetByName(s.Table, s.Name)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return explain("looking for the set "+s.Name, err)
		}
		if what := wrongWith(found, err, s); what != "" {
			return fmt.Errorf("%s; mode admit needs it as made by: %s", what, a.recipe(s))
		}
	}
	return nil
}

// wrongWith returns why a set cannot hold grants, or "" if it can.
func wrongWith(found *nft.Set, err error, want *nft.Set) string {
	where := fmt.Sprintf("set %s in table %s %s", want.Name, nameOf(want.Table.Family), want.Table.Name)
	switch {
	case err != nil:
		return "there is no " + where
	case found.IsMap:
		return where + " is a map"
	case found.KeyType.GetNFTMagic() != want.KeyType.GetNFTMagic():
		return where + " has keys of the wrong type"
	case !found.HasTimeout:
		return where + " lacks the timeout flag"
	case found.Interval:
		return where + " has the interval flag, which grants cannot use"
	case found.Constant:
		return where + " is constant"
	}
	return ""
}

func nameOf(f nft.TableFamily) string {
	return map[nft.TableFamily]string{
		nft.TableFamilyINet: "inet", nft.TableFamilyIPv4: "ip", nft.TableFamilyIPv6: "ip6",
	}[f]
}

// recipe returns the nft command that makes such a set.
func (a *Admitting) recipe(s *nft.Set) string {
	address := "ipv4_addr"
	if s == a.Set6 {
		address = "ipv6_addr"
	}
	return fmt.Sprintf("nft add set %s %s %s '{ type %s . inet_proto . inet_service; flags timeout; }'",
		nameOf(s.Table.Family), s.Table.Name, s.Name, address)
}

func (a *Admitting) Describe() string {
	var names []string
	for _, s := range a.sets() {
		names = append(names, s.Name)
	}
	return fmt.Sprintf("nftables, mode=admit, sets %s of table %s %s; that table keeps the ports closed",
		strings.Join(names, " and "), nameOf(a.sets()[0].Table.Family), a.sets()[0].Table.Name)
}

// Persists returns false: the table that shuts the ports is not ours.
func (a *Admitting) Persists() bool { return false }

func (a *Admitting) Load(_ guard.Spec, p guard.Plan) error {
	if _, err := a.present(); err != nil {
		return err
	}
	first := a.known == 0
	if err := nl.Drain(a.Events); err != nil {
		return explain("discarding earlier changes", err)
	}
	if err := a.release(); err != nil {
		return err
	}
	if err := a.Make(a.Objects, guard.Plan{}, 0, true); err != nil {
		return err
	}
	if t, err := a.Table(); err == nil {
		a.known = t.Handle
	}
	a.Wait(time.Time{})
	err := a.retry(func() error { return a.exchange(p.Leases) })
	if err != nil || !first {
		return err
	}
	return a.endAdmitted(a.sets()) // in sets of an earlier configuration, where no revocation would reach them
}

// exchange makes our elements in the administrator's sets match the leases.
func (a *Admitting) exchange(ls []guard.Lease) error {
	if err := a.check(); err != nil {
		return err
	}
	var b batch
	wanted := a.Objects.grantElements(guard.Plan{Leases: ls}.At(a.Spec.Now()).Leases)
	for _, s := range a.sets() {
		want := wanted[a.Objects.Grants4]
		if s == a.Set6 {
			want = wanted[a.Objects.Grants6]
		}
		there, err := a.Elements(s)
		if err != nil {
			return explain("listing the set "+s.Name, err)
		}
		found := make(map[string]*nft.SetElement, len(there))
		for i := range there {
			found[string(there[i].Key)] = &there[i]
		}
		for i := range want {
			e := found[string(want[i].Key)]
			a.put(&b, s, want[i], e)
			delete(found, string(want[i].Key))
		}
		for _, e := range found {
			if e.Comment == OurComment {
				b.add(unix.NFT_MSG_DELSETELEM, s, []nft.SetElement{{Key: e.Key}})
			}
		}
	}
	return explain("putting grants into your sets", b.send(a.Socket))
}

// put adds to the batch what makes an element ours. there is the existing element, or nil.
func (a *Admitting) put(b *batch, s *nft.Set, want nft.SetElement, there *nft.SetElement) {
	if there != nil && there.Comment != OurComment {
		if there.Timeout > 0 && there.Expires < want.Timeout {
			a.Wait(time.Now().Add(there.Expires))
		}
		return
	}
	if there != nil {
		b.add(unix.NFT_MSG_DELSETELEM, s, []nft.SetElement{{Key: want.Key}})
	}
	want.Comment = OurComment
	b.append(nfType(unix.NFT_MSG_NEWSETELEM), netlink.Request|netlink.Create|netlink.Excl,
		elementsMessage(s, []nft.SetElement{want}))
}

// retry repeats do if the sets changed under it: an element may have been added or have expired since do read them.
func (a *Admitting) retry(do func() error) error {
	var err error
	for range 5 {
		err = do()
		if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return err
}

func (a *Admitting) Set(ls []guard.Lease) error {
	for _, l := range ls {
		if l.Link != 0 || l.To.IsValid() || l.Bits != 0 {
			return fmt.Errorf("mode admit: the keys of your sets have no interface or destination, so %v cannot have a grant",
				guard.OnLink(l.Source, l.Link))
		}
		if a.setOf(l) == nil && guard.Remaining(l.Until, a.Spec.Now()) > 0 {
			return fmt.Errorf("mode admit: no set is configured for a source like %v", l.Source)
		}
	}
	return a.retry(func() error {
		err := a.setOnce(ls)
		if errors.Is(err, unix.ENOENT) {
			if wrong := a.check(); wrong != nil {
				return wrong
			}
		}
		return err
	})
}

func (a *Admitting) setOf(l guard.Lease) *nft.Set {
	if l.Source.Is4() {
		return a.Set4
	}
	return a.Set6
}

func (a *Admitting) setOnce(ls []guard.Lease) error {
	var b batch
	for _, l := range guard.Timed(ls, a.Spec.Now()) {
		s := a.setOf(l)
		if s == nil {
			continue
		}
		want := nft.SetElement{Key: PortKey(l.Source.AsSlice(), l.Proto, l.Port), Timeout: l.Remaining}
		there, err := a.element(s, want.Key)
		if err != nil {
			return explain("reading the set "+s.Name, err)
		}
		switch {
		case l.Remaining > 0:
			a.put(&b, s, want, there)
		case there != nil && there.Comment == OurComment:
			b.add(unix.NFT_MSG_DELSETELEM, s, []nft.SetElement{{Key: want.Key}})
		}
	}
	return explain("changing grants in your sets", b.send(a.Socket))
}

// element returns the set's element with that key, or nil.
func (a *Admitting) element(s *nft.Set, key []byte) (*nft.SetElement, error) {
	answers, err := a.Socket.Execute(netlink.Message{
		Header: netlink.Header{Type: nfType(unix.NFT_MSG_GETSETELEM), Flags: netlink.Request},
		Data:   elementsMessage(s, []nft.SetElement{{Key: key}}),
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // or the set is missing, which adding to it will report
	}
	if err != nil {
		return nil, err
	}
	for _, m := range answers {
		if e, ok := decodeElement(m.Data); ok {
			e.Key = key
			return e, nil
		}
	}
	return nil, nl.ErrNoAnswer
}

// decodeElement reads the timeout and comment of the first element in a message.
func decodeElement(b []byte) (*nft.SetElement, bool) {
	if len(b) < 4 {
		return nil, false
	}
	var e nft.SetElement
	found := false
	walk(b[4:], func(kind uint16, b []byte) {
		if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return
		}
		walk(b, func(_ uint16, b []byte) {
			found = true
			walk(b, func(kind uint16, b []byte) { readElement(&e, kind, b) })
		})
	})
	return &e, found
}

func readElement(e *nft.SetElement, kind uint16, b []byte) {
	switch kind {
	case unix.NFTA_SET_ELEM_TIMEOUT:
		e.Timeout = milliseconds(b)
	case unix.NFTA_SET_ELEM_EXPIRATION:
		e.Expires = milliseconds(b)
	case unix.NFTA_SET_ELEM_USERDATA:
		if len(b) > 2 && b[0] == 0 && int(b[1]) == len(b)-2 {
			e.Comment = string(bytes.TrimRight(b[2:], "\x00"))
		}
	}
}

func milliseconds(b []byte) time.Duration {
	if len(b) != 8 {
		return 0
	}
	return time.Duration(binary.BigEndian.Uint64(b)) * time.Millisecond
}

// walk calls each with the attributes in b.
func walk(b []byte, each func(kind uint16, value []byte)) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return
	}
	for d.Next() {
		each(d.Type(), d.Bytes())
	}
}
