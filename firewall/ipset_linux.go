package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

// Numbers of linux/netfilter/ipset/ip_set.h.
const (
	ipsetProtocol = 6 // the oldest that every kernel speaks

	ipsetCmdProtocol = 1
	ipsetCmdCreate   = 2
	ipsetCmdDestroy  = 3
	ipsetCmdSwap     = 6
	ipsetCmdList     = 7
	ipsetCmdAdd      = 9
	ipsetCmdDel      = 10
	ipsetCmdTest     = 11

	ipsetAttrProtocol = 1
	ipsetAttrName     = 2
	ipsetAttrType     = 3 // at a swap: the other name
	ipsetAttrRevision = 4
	ipsetAttrFamily   = 5
	ipsetAttrData     = 7
	ipsetAttrElements = 8

	ipsetAttrIP      = 1
	ipsetAttrPort    = 4
	ipsetAttrPortTo  = 5
	ipsetAttrTimeout = 6
	ipsetAttrProto   = 7
	ipsetAttrMaxElem = 19
	ipsetAttrIP2     = 20
	ipsetAttrIface   = 23

	ipsetErrMaxSets  = unix.Errno(4099)
	ipsetErrBusy     = unix.Errno(4100)
	ipsetErrMismatch = unix.Errno(4102)
	ipsetErrExists   = unix.Errno(4103)
	ipsetErrFull     = unix.Errno(4352)
	ipsetErrFindType = unix.Errno(4098)
)

// maxTimeout is the longest that a kernel with a clock of 1,000 ticks a second keeps an
// element of an ipset (IPSET_MAX_TIMEOUT): a little under 25 days.
const maxTimeout = 2147483

// Types of sets.
const (
	hashIPPort   = "hash:ip,port"
	hashIPPortIP = "hash:ip,port,ip"
	hashNetIface = "hash:net,iface"
	bitmapPort   = "bitmap:port"
)

// ipset is a set that rules of iptables can ask. Its elements can have a timeout.
type ipset struct {
	name, kind string
	family     byte   // of addresses
	max        uint32 // elements of a hash
	low, high  uint16 // ports of a bitmap
}

// member is an element of an ipset: what of it its type has.
type member struct {
	ip      netip.Addr
	proto   service.Proto
	port    uint16
	ip2     netip.Addr
	iface   string
	seconds uint32 // until it is gone; 0: it stays
}

// ipsets is the socket over which sets are changed: by the kernel's own messages, so that a
// grant needs no program. Each change is answered for; nothing is heard of what others do.
type ipsets struct {
	mu   sync.Mutex // guards the order of messages and answers
	conn *netlink.Conn
}

// openIPSets fails where the kernel has no ipset.
func openIPSets() (*ipsets, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	s := &ipsets{conn: c}
	if err := nl.Size(c); err != nil {
		return nil, errors.Join(fmt.Errorf("opening netlink: %w", err), c.Close())
	}
	if err := s.one(ipsetMessage(ipsetCmdProtocol, 0)); err != nil {
		return nil, errors.Join(explainIPSet("asking the kernel", err), c.Close())
	}
	return s, nil
}

func (s *ipsets) close() error { return s.conn.Close() }

// explainIPSet says what an errno means. Those from 4096 on are ipset's own.
func explainIPSet(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return nl.Denied("ipset: "+doing, err)
	case errors.Is(err, unix.EINVAL) && doing == "asking the kernel":
		return errors.New("this kernel has no ipset (CONFIG_IP_SET)")
	case errors.Is(err, ipsetErrFindType):
		return fmt.Errorf("ipset: %s: this kernel lacks that type of set", doing)
	case errors.Is(err, ipsetErrMaxSets):
		return fmt.Errorf("ipset: %s: this kernel takes no more sets (max_sets of module ip_set)", doing)
	case errors.Is(err, ipsetErrMismatch), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("ipset: %s: %w", doing, errForeignSet)
	case errors.Is(err, ipsetErrBusy):
		return fmt.Errorf("ipset: %s: a rule still asks for it", doing)
	case errors.Is(err, ipsetErrFull):
		return fmt.Errorf("%w: the kernel takes no more elements into the set", ErrFull)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: ipset: %s: there is no such set", guard.ErrGone, doing)
	}
	return fmt.Errorf("ipset: %s: %w", doing, err)
}

func ipsetMessage(cmd uint16, flags netlink.HeaderFlags, attributes ...[]byte) netlink.Message {
	data := []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}
	data = nl.Attribute(data, ipsetAttrProtocol, []byte{ipsetProtocol})
	for _, a := range attributes {
		data = append(data, a...)
	}
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_IPSET<<8 | cmd),
			Flags: netlink.Request | flags,
		},
		Data: data,
	}
}

func text(kind uint16, s string) []byte { return nl.Text(nil, kind, s) }

func big16(data []byte, kind, v uint16) []byte {
	return nl.Attribute(data, kind|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, v))
}

func big32(data []byte, kind uint16, v uint32) []byte {
	return nl.Attribute(data, kind|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint32(nil, v))
}

// keep makes the set, if there is none of its name. One that differs is errForeignSet.
func (s *ipsets) keep(set ipset) error { return explainIPSet("making "+set.name, s.make(set)) }

// create does the same, and takes one that differs for good: what is in it is yet to be replaced.
func (s *ipsets) create(set ipset) error {
	err := s.make(set)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return explainIPSet("making "+set.name, err)
}

// make is EEXIST only where there is a set of that name which differs.
func (s *ipsets) make(set ipset) error {
	revision := map[string]byte{hashIPPort: 1, hashIPPortIP: 1, hashNetIface: 1}[set.kind]
	data := nl.Nested(nil, ipsetAttrData, func(data []byte) []byte {
		data = big32(data, ipsetAttrTimeout, 0)
		if set.kind == bitmapPort {
			return big16(big16(data, ipsetAttrPort, set.low), ipsetAttrPortTo, set.high)
		}
		return big32(data, ipsetAttrMaxElem, set.max)
	})
	return s.one(ipsetMessage(ipsetCmdCreate, netlink.Create,
		text(ipsetAttrName, set.name), text(ipsetAttrType, set.kind),
		nl.Attribute(nil, ipsetAttrRevision, []byte{revision}),
		nl.Attribute(nil, ipsetAttrFamily, []byte{set.family}), data))
}

// letsGo is how long a kernel may take to let go of sets whose rules are gone: some free rules
// a while after they are deleted.
const letsGo = 5 * time.Second

// destroy takes sets away; none of a name is no error.
func (s *ipsets) destroy(names ...string) error {
	var errs []error
	give := time.Now().Add(letsGo)
	for {
		var held []string
		errs = errs[:0]
		for _, name := range names {
			err := s.one(ipsetMessage(ipsetCmdDestroy, 0, text(ipsetAttrName, name)))
			if err == nil || errors.Is(err, unix.ENOENT) {
				continue
			}
			held, errs = append(held, name), append(errs, explainIPSet("removing "+name, err))
			if !errors.Is(err, ipsetErrBusy) {
				give = time.Time{} // to wait is of no use
			}
		}
		if len(held) == 0 || time.Now().After(give) {
			return errors.Join(errs...)
		}
		names = held
		time.Sleep(10 * time.Millisecond)
	}
}

// fresh ends the name of a set that is filled to take the place of another.
const fresh = "-new"

// replace makes the set what ms says, at one instant, whether it was there or not.
func (s *ipsets) replace(set ipset, ms []member) error {
	next := set
	next.name = set.name + fresh
	if err := s.destroy(next.name); err != nil {
		return err
	}
	if err := s.create(next); err != nil {
		return err
	}
	err := s.fill(next.name, ms)
	if err == nil {
		err = s.create(set)
	}
	if err == nil {
		err = explainIPSet("changing "+set.name,
			s.one(ipsetMessage(ipsetCmdSwap, 0, text(ipsetAttrName, next.name), text(ipsetAttrType, set.name))))
	}
	return errors.Join(err, s.destroy(next.name))
}

func (s *ipsets) fill(name string, ms []member) error {
	errs, err := s.each(ipsetCmdAdd, 0, name, ms)
	if err != nil {
		return err
	}
	for _, errno := range errs {
		return explainIPSet("filling "+name, errno)
	}
	return nil
}

// each does one command for each member and returns the errno of those that failed.
func (s *ipsets) each(cmd uint16, flags netlink.HeaderFlags, name string, ms []member) (map[int]unix.Errno, error) {
	batch := make([]netlink.Message, len(ms))
	for i := range ms {
		batch[i] = ipsetMessage(cmd, flags, text(ipsetAttrName, name), nl.Nested(nil, ipsetAttrData, ms[i].append))
	}
	errs, err := s.send(batch)
	if err != nil {
		return nil, fmt.Errorf("ipset: changing %s: %w", name, err)
	}
	return errs, nil
}

// change adds or deletes a member; to delete one that is not there is no error.
func (s *ipsets) change(cmd uint16, name string, m member) error {
	errs, err := s.each(cmd, 0, name, []member{m})
	if errno, failed := errs[0]; failed && err == nil {
		err = explainIPSet("changing "+name, errno)
	}
	return err
}

// has reports whether the set has the member.
func (s *ipsets) has(name string, m member) (bool, error) {
	errs, err := s.each(ipsetCmdTest, 0, name, []member{m})
	if err != nil || len(errs) == 0 {
		return err == nil, err
	}
	if errs[0] == ipsetErrExists || errs[0] == unix.ENOENT {
		return false, nil
	}
	return false, explainIPSet("asking "+name, errs[0])
}

func (m member) append(data []byte) []byte {
	data = address(data, ipsetAttrIP, m.ip)
	data = address(data, ipsetAttrIP2, m.ip2)
	if m.iface != "" {
		data = append(data, text(ipsetAttrIface, m.iface)...)
	} else {
		data = big16(data, ipsetAttrPort, m.port)
	}
	if m.proto != 0 {
		data = nl.Attribute(data, ipsetAttrProto, []byte{byte(m.proto)})
	}
	return big32(data, ipsetAttrTimeout, m.seconds)
}

func address(data []byte, kind uint16, a netip.Addr) []byte {
	if !a.IsValid() {
		return data
	}
	family := uint16(1) // IPSET_ATTR_IPADDR_IPV4
	if a.Is6() {
		family = 2
	}
	return nl.Nested(data, kind, func(data []byte) []byte {
		return nl.Attribute(data, family|unix.NLA_F_NET_BYTEORDER, a.AsSlice())
	})
}

// one sends a message that must be answered with success.
func (s *ipsets) one(m netlink.Message) error {
	errs, err := s.send([]netlink.Message{m})
	if err != nil {
		return err
	}
	if errno, failed := errs[0]; failed {
		return errno
	}
	return nil
}

// list returns the members of a set; errGone where there is no such set.
func (s *ipsets) list(name string) ([]member, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answers, err := s.conn.Execute(ipsetMessage(ipsetCmdList, netlink.Dump, text(ipsetAttrName, name)))
	if err != nil {
		return nil, errors.Join(explainIPSet("listing "+name, err), nl.Drain(s.conn))
	}
	var ms []member
	for _, answer := range answers {
		if len(answer.Data) < 4 {
			continue
		}
		d, err := netlink.NewAttributeDecoder(answer.Data[4:])
		if err != nil {
			return nil, fmt.Errorf("ipset: listing %s: %w", name, err)
		}
		for d.Next() {
			if d.Type() == ipsetAttrElements {
				d.Nested(func(d *netlink.AttributeDecoder) error { return decodeMembers(d, &ms) })
			}
		}
		if err := d.Err(); err != nil {
			return nil, fmt.Errorf("ipset: listing %s: %w", name, err)
		}
	}
	return ms, nil
}

func decodeMembers(d *netlink.AttributeDecoder, ms *[]member) error {
	for d.Next() {
		var m member
		d.Nested(m.decode)
		*ms = append(*ms, m)
	}
	return d.Err()
}

func (m *member) decode(d *netlink.AttributeDecoder) error {
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case ipsetAttrIP:
			d.Nested(func(d *netlink.AttributeDecoder) error { return decodeAddress(d, &m.ip) })
		case ipsetAttrIP2:
			d.Nested(func(d *netlink.AttributeDecoder) error { return decodeAddress(d, &m.ip2) })
		case ipsetAttrPort:
			m.port = d.Uint16()
		case ipsetAttrProto:
			m.proto = service.Proto(d.Uint8())
		case ipsetAttrTimeout:
			m.seconds = d.Uint32()
		}
	}
	return d.Err()
}

func decodeAddress(d *netlink.AttributeDecoder, a *netip.Addr) error {
	for d.Next() {
		*a, _ = netip.AddrFromSlice(d.Bytes())
	}
	return d.Err()
}

// send sends messages and returns the errno of those that failed, by their place.
func (s *ipsets) send(ms []netlink.Message) (map[int]unix.Errno, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	failed := make(map[int]unix.Errno)
	for start := 0; start < len(ms); start += nl.Chunk {
		part := ms[start:min(start+nl.Chunk, len(ms))]
		part[len(part)-1].Header.Flags |= netlink.Acknowledge // failures are answered in any case
		sent, err := s.conn.SendMessages(part)
		if err != nil {
			return nil, err
		}
		place := make(map[uint32]int, len(sent))
		for i, m := range sent {
			place[m.Header.Sequence] = start + i
		}
		err = nl.Answers(s.conn, sent[len(sent)-1].Header.Sequence, func(sequence uint32, errno unix.Errno) bool {
			if i, ours := place[sequence]; ours && errno != 0 {
				failed[i] = errno
			}
			return false
		})
		if err != nil {
			return nil, errors.Join(err, nl.Drain(s.conn))
		}
	}
	return failed, nil
}

// seconds is d as timeouts of ipset have it: whole seconds, rounded up, since a grant that
// ends too early was promised in vain.
func seconds(d time.Duration) uint32 {
	s := (d + time.Second - 1) / time.Second
	return uint32(min(max(s, 1), maxTimeout))
}
