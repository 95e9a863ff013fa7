// Package ipset changes the sets that iptables rules match, over netlink.
package ipset

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
	protocol = 6 // the oldest, which every kernel supports

	cmdProtocol = 1
	cmdCreate   = 2
	cmdDestroy  = 3
	cmdSwap     = 6
	cmdList     = 7
	CmdAdd      = 9
	CmdDel      = 10
	cmdTest     = 11

	attrProtocol = 1
	attrName     = 2
	attrType     = 3 // in a swap: the other name
	attrRevision = 4
	attrFamily   = 5
	attrData     = 7
	attrElements = 8

	attrIP      = 1
	attrBits    = 3
	attrPort    = 4
	attrPortTo  = 5
	attrTimeout = 6
	attrProto   = 7
	attrMaxElem = 19
	attrIP2     = 20
	attrBits2   = 21
	attrIface   = 23

	errMaxSets  = unix.Errno(4099)
	errBusy     = unix.Errno(4100)
	errMismatch = unix.Errno(4102)
	ErrExists   = unix.Errno(4103)
	errFull     = unix.Errno(4352)
	errFindType = unix.Errno(4098)
)

// maxTimeout is the longest timeout of an ipset element (IPSET_MAX_TIMEOUT) on a kernel with 1,000 clock ticks a
// second: a little under 25 days.
const maxTimeout = 2147483

// Types of sets.
const (
	HashIPPort    = "hash:ip,port"
	HashIPPortIP  = "hash:ip,port,ip"
	HashNetIface  = "hash:net,iface"
	HashNetPort   = "hash:net,port"
	HashIPPortNet = "hash:ip,port,net"
	BitmapPort    = "bitmap:port"
)

// ErrForeign is returned when a set with one of our names differs from ours.
var ErrForeign = errors.New(`an ipset named "spa-..." exists that is not ours; rename it, or ` +
	`remove it with: ipset destroy`)

// Set is a set that iptables rules can match. Its elements can have timeouts.
type Set struct {
	Name, Kind string
	Family     byte   // of its addresses
	Max        uint32 // capacity of a hash, in elements
	Low, High  uint16 // port range of a bitmap
}

// Member is an element of an ipset. The type of the set decides which fields it has.
type Member struct {
	IP      netip.Addr
	Proto   service.Proto
	Port    uint16
	IP2     netip.Addr
	Bits    uint8 // the length of the prefix, of IP2 if there is one, else of IP; 0: one address
	Iface   string
	Seconds uint32 // seconds until it expires; 0: never
}

// Conn is a socket for changing sets, so that a grant needs no program. The kernel answers each change, and does not
// report changes by other tools.
type Conn struct {
	mu   sync.Mutex // guards the order of messages and answers
	conn *netlink.Conn
}

// Open opens the socket. It fails if the kernel has no ipset.
func Open() (*Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	s := &Conn{conn: c}
	if err := nl.Size(c); err != nil {
		return nil, errors.Join(fmt.Errorf("opening netlink: %w", err), c.Close())
	}
	if err := s.one(message(cmdProtocol, 0)); err != nil {
		return nil, errors.Join(Explain("probing the kernel", err), c.Close())
	}
	return s, nil
}

// Close closes the socket. The sets stay.
func (s *Conn) Close() error { return s.conn.Close() }

// Explain adds to an errno what was being done and what the errno means. Numbers from 4096 on are ipset's own.
func Explain(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return nl.Explain("ipset: "+doing, err)
	case errors.Is(err, unix.EINVAL) && doing == "probing the kernel":
		return errors.New("this kernel has no ipset (CONFIG_IP_SET)")
	case errors.Is(err, errFindType):
		return fmt.Errorf("ipset: %s: this kernel lacks that type of set", doing)
	case errors.Is(err, errMaxSets):
		return fmt.Errorf("ipset: %s: this kernel takes no more sets (max_sets of module ip_set)", doing)
	case errors.Is(err, errMismatch), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("ipset: %s: %w", doing, ErrForeign)
	case errors.Is(err, errBusy):
		return fmt.Errorf("ipset: %s: a rule still uses it", doing)
	case errors.Is(err, errFull):
		return fmt.Errorf("%w: the kernel takes no more elements into the set", guard.ErrFull)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: ipset: %s: no such set", guard.ErrGone, doing)
	}
	return fmt.Errorf("ipset: %s: %w", doing, err)
}

func message(cmd uint16, flags netlink.HeaderFlags, attributes ...[]byte) netlink.Message {
	data := []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}
	data = nl.Attribute(data, attrProtocol, []byte{protocol})
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

// Keep makes the set if it is missing. If a set of that name differs, it returns ErrForeign.
func (s *Conn) Keep(set Set) error { return Explain("making "+set.Name, s.make(set)) }

// Create makes the set if it is missing, and accepts one that differs: Replace changes its contents.
func (s *Conn) Create(set Set) error {
	err := s.make(set)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return Explain("making "+set.Name, err)
}

// make returns EEXIST only if a set of that name exists and differs.
func (s *Conn) make(set Set) error {
	revision := map[string]byte{HashIPPort: 1, HashIPPortIP: 1, HashNetIface: 1, HashNetPort: 1,
		HashIPPortNet: 1}[set.Kind]
	data := nl.Nested(nil, attrData, func(data []byte) []byte {
		data = big32(data, attrTimeout, 0)
		if set.Kind == BitmapPort {
			return big16(big16(data, attrPort, set.Low), attrPortTo, set.High)
		}
		return big32(data, attrMaxElem, set.Max)
	})
	return s.one(message(cmdCreate, netlink.Create,
		text(attrName, set.Name), text(attrType, set.Kind),
		nl.Attribute(nil, attrRevision, []byte{revision}),
		nl.Attribute(nil, attrFamily, []byte{set.Family}), data))
}

// letsGo is how long a kernel may use sets after their rules are deleted: some free rules only after a while.
const letsGo = 5 * time.Second

// Destroy removes sets. A missing one is no error.
func (s *Conn) Destroy(names ...string) error {
	var errs []error
	give := time.Now().Add(letsGo)
	for {
		var held []string
		errs = errs[:0]
		for _, name := range names {
			err := s.one(message(cmdDestroy, 0, text(attrName, name)))
			if err == nil || errors.Is(err, unix.ENOENT) {
				continue
			}
			held, errs = append(held, name), append(errs, Explain("removing "+name, err))
			if !errors.Is(err, errBusy) {
				give = time.Time{} // waiting would not help
			}
		}
		if len(held) == 0 || time.Now().After(give) {
			return errors.Join(errs...)
		}
		names = held
		time.Sleep(10 * time.Millisecond)
	}
}

// Fresh ends the name of a set that is filled to replace another.
const Fresh = "-new"

// Replace makes ms the members of the set in one step, creating the set if it is missing.
func (s *Conn) Replace(set Set, ms []Member) error {
	next := set
	next.Name = set.Name + Fresh
	if err := s.Destroy(next.Name); err != nil {
		return err
	}
	if err := s.Create(next); err != nil {
		return err
	}
	err := s.fill(next.Name, ms)
	if err == nil {
		err = s.Create(set)
	}
	if err == nil {
		err = Explain("changing "+set.Name,
			s.one(message(cmdSwap, 0, text(attrName, next.Name), text(attrType, set.Name))))
	}
	return errors.Join(err, s.Destroy(next.Name))
}

func (s *Conn) fill(name string, ms []Member) error {
	errs, err := s.Each(CmdAdd, 0, name, ms)
	if err != nil {
		return err
	}
	for _, errno := range errs {
		return Explain("filling "+name, errno)
	}
	return nil
}

// Each sends one command for each member and returns the errno of those that failed, by index.
func (s *Conn) Each(cmd uint16, flags netlink.HeaderFlags, name string, ms []Member) (map[int]unix.Errno, error) {
	batch := make([]netlink.Message, len(ms))
	for i := range ms {
		batch[i] = message(cmd, flags, text(attrName, name), nl.Nested(nil, attrData, ms[i].append))
	}
	errs, err := s.send(batch)
	if err != nil {
		return nil, fmt.Errorf("ipset: changing %s: %w", name, err)
	}
	return errs, nil
}

// Change adds or deletes a member. Deleting a missing one is no error.
func (s *Conn) Change(cmd uint16, name string, m Member) error {
	errs, err := s.Each(cmd, 0, name, []Member{m})
	if errno, failed := errs[0]; failed && err == nil {
		err = Explain("changing "+name, errno)
	}
	return err
}

// Has reports whether the set has the member.
func (s *Conn) Has(name string, m Member) (bool, error) {
	errs, err := s.Each(cmdTest, 0, name, []Member{m})
	if err != nil || len(errs) == 0 {
		return err == nil, err
	}
	if errs[0] == ErrExists || errs[0] == unix.ENOENT {
		return false, nil
	}
	return false, Explain("asking "+name, errs[0])
}

func (m Member) append(data []byte) []byte {
	data = address(data, attrIP, m.IP)
	data = address(data, attrIP2, m.IP2)
	if m.Bits != 0 {
		kind := uint16(attrBits)
		if m.IP2.IsValid() {
			kind = attrBits2
		}
		data = nl.Attribute(data, kind, []byte{m.Bits})
	}
	if m.Iface != "" {
		data = append(data, text(attrIface, m.Iface)...)
	} else {
		data = big16(data, attrPort, m.Port)
	}
	if m.Proto != 0 {
		data = nl.Attribute(data, attrProto, []byte{byte(m.Proto)})
	}
	return big32(data, attrTimeout, m.Seconds)
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

// one sends a message and returns its errno.
func (s *Conn) one(m netlink.Message) error {
	errs, err := s.send([]netlink.Message{m})
	if err != nil {
		return err
	}
	if errno, failed := errs[0]; failed {
		return errno
	}
	return nil
}

// List returns the members of a set, or guard.ErrGone if there is no such set.
func (s *Conn) List(name string) ([]Member, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answers, err := s.conn.Execute(message(cmdList, netlink.Dump, text(attrName, name)))
	if err != nil {
		return nil, errors.Join(Explain("listing "+name, err), nl.Drain(s.conn))
	}
	var ms []Member
	for _, answer := range answers {
		if len(answer.Data) < 4 {
			continue
		}
		d, err := netlink.NewAttributeDecoder(answer.Data[4:])
		if err != nil {
			return nil, fmt.Errorf("ipset: listing %s: %w", name, err)
		}
		for d.Next() {
			if d.Type() == attrElements {
				d.Nested(func(d *netlink.AttributeDecoder) error { return decodeMembers(d, &ms) })
			}
		}
		if err := d.Err(); err != nil {
			return nil, fmt.Errorf("ipset: listing %s: %w", name, err)
		}
	}
	return ms, nil
}

func decodeMembers(d *netlink.AttributeDecoder, ms *[]Member) error {
	for d.Next() {
		var m Member
		d.Nested(m.decode)
		*ms = append(*ms, m)
	}
	return d.Err()
}

func (m *Member) decode(d *netlink.AttributeDecoder) error {
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case attrIP:
			d.Nested(func(d *netlink.AttributeDecoder) error { return decodeAddress(d, &m.IP) })
		case attrIP2:
			d.Nested(func(d *netlink.AttributeDecoder) error { return decodeAddress(d, &m.IP2) })
		case attrBits, attrBits2:
			m.Bits = d.Uint8()
		case attrPort:
			m.Port = d.Uint16()
		case attrProto:
			m.Proto = service.Proto(d.Uint8())
		case attrTimeout:
			m.Seconds = d.Uint32()
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

// send sends messages and returns the errno of those that failed, by index.
func (s *Conn) send(ms []netlink.Message) (map[int]unix.Errno, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	failed := make(map[int]unix.Errno)
	for start := 0; start < len(ms); start += nl.Chunk {
		part := ms[start:min(start+nl.Chunk, len(ms))]
		part[len(part)-1].Header.Flags |= netlink.Acknowledge // failures are answered anyway
		if err := nl.Send(s.conn, part); err != nil {
			return nil, err
		}
		place := make(map[uint32]int, len(part))
		for i, m := range part {
			place[m.Header.Sequence] = start + i
		}
		err := nl.Answers(s.conn, part[len(part)-1].Header.Sequence, func(sequence uint32, errno unix.Errno) bool {
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

// Seconds returns d as a timeout of ipset: whole seconds, rounded up, because no grant may end early.
func Seconds(d time.Duration) uint32 {
	s := (d + time.Second - 1) / time.Second
	return uint32(min(max(s, 1), maxTimeout))
}

// Empty deletes all members. A member may expire in between and fail to be deleted, so only members that remain are
// an error.
func (s *Conn) Empty(name string) error {
	ms, err := s.List(name)
	if errors.Is(err, guard.ErrGone) {
		return nil
	}
	if err == nil {
		_, err = s.Each(CmdDel, 0, name, ms)
	}
	if err != nil {
		return err
	}
	left, err := s.List(name)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%d of %d elements remain in ipset %s", len(left), len(ms), name)
	}
	return err
}
