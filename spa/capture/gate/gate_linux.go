package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The map of settings: which of two generations is in force, the generations, and a bit for each port.
const (
	generationsAt = 64
	generationLen = 192
	knockAt       = 512
	dropAt        = knockAt + bitmapLen // ports on which XDP may drop
	settingsLen   = dropAt + bitmapLen
	bitmapLen     = 1 << 13
)

// A generation: keys as initial states of SipHash, and lengths of datagrams with the UDP header.
const (
	keyLen     = 32
	keysAt     = MaxKeys * keyLen // how many keys there are
	minAt      = keysAt + 4
	maxAt      = minAt + 4
	frameMinAt = maxAt + 4
	frameMaxAt = frameMinAt + 4
)

func generationAt(n uint32) uint32 { return generationsAt + n*generationLen }

// The map of copies: sets of entries of a packet's first 32 bytes, the address that it must not come from again, and
// whether it must not come from any.
const (
	copySets = 2048
	ways     = 4
	entryLen = 64
	setShift = 8 // of ways entries
	fromAt   = 32
	stateAt  = 48

	fromOne = 1
	fromAny = 2
)

// The map of this host's addresses: sets of entries of an address.
const (
	ownSets     = 256
	ownWays     = 8
	ownSetShift = 7 // of ownWays entries
	ownShift    = 56

	ownMix uint64 = 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
)

// The map of counters: for each processor a line for the sockets and one for XDP.
const (
	countShift = 7
	xdpLine    = 64
	filledOf   = xdpLine + 48 // when its budget was last filled up, in nanoseconds
	budgetOf   = xdpLine + 56 // what is left of it, in nanoseconds: a packet costs those until the next
	second     = 1_000_000_000
	counters   = 5
)

// errRights means that the process may not load programs, or make maps for them.
var errRights = errors.New("loading an eBPF program needs CAP_BPF")

// explained returns errRights for the kernel's refusal of rights.
func explained(err error) error {
	if errors.Is(err, unix.EPERM) {
		return errRights
	}
	return err
}

type maps struct{ settings, copied, own, counts *ebpf.Map }

// Gate is an open gate. Its methods may be called from any goroutine, also of nil: a server without a gate.
type Gate struct {
	kernel maps
	cpus   int
	config Config

	mu       sync.Mutex // guards the fields below; the memory is nil after Close
	settings []byte
	copied   []byte
	counts   []byte
	own      []byte
	next     [copySets]uint8 // which entry of a set is replaced next
	links    []link.Link
	last     Counts
}

// Open makes the gate's maps. It needs CAP_BPF.
func Open(c Config) (*Gate, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, err
	}
	g := &Gate{cpus: cpus, config: c}
	for _, m := range []struct {
		name   string
		size   uint32
		table  **ebpf.Map
		memory *[]byte
	}{
		{"spa_settings", settingsLen, &g.kernel.settings, &g.settings},
		{"spa_copies", copySets * ways * entryLen, &g.kernel.copied, &g.copied},
		{"spa_own", ownSets * ownWays * 16, &g.kernel.own, &g.own},
		{"spa_counts", uint32(cpus) << countShift, &g.kernel.counts, &g.counts},
	} {
		if *m.table, *m.memory, err = newMap(m.name, m.size); err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	for _, port := range c.Ports {
		g.settings[knockAt+port/8] |= 1 << (port % 8)
		if !slices.Contains(c.Shared, port) {
			g.settings[dropAt+int(port/8)] |= 1 << (port % 8)
		}
	}
	g.SetKeys(c.Keys)
	return g, nil
}

// newMap makes a map of one value that is shared with the kernel as memory.
func newMap(name string, size uint32) (*ebpf.Map, []byte, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: size, MaxEntries: 1,
		Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		return nil, nil, explained(err)
	}
	memory, err := unix.Mmap(m.FD(), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("mapping %s: %w", name, err), m.Close())
	}
	return m, memory, nil
}

// SetKeys replaces the keys; at most MaxKeys count. A packet is checked with the old keys or with the new ones. If they
// change twice while it is checked, it may be dropped.
func (g *Gate) SetKeys(list []Key) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.settings == nil {
		return
	}
	chosen := word32(g.settings, 0)
	spare := 1 - atomic.LoadUint32(chosen)
	to := g.settings[generationAt(spare):][:generationLen]
	clear(to)
	list = list[:min(MaxKeys, len(list))]
	for i, k := range list {
		for word, v := range [...]uint64{k.K0 ^ 0x736f6d6570736575, k.K1 ^ 0x646f72616e646f6d,
			k.K0 ^ 0x6c7967656e657261, k.K1 ^ 0x7465646279746573} {
			binary.NativeEndian.PutUint64(to[i*keyLen+8*word:], v)
		}
	}
	put := func(at, n int) { binary.NativeEndian.PutUint32(to[at:], uint32(n)) }
	put(keysAt, len(list))
	put(minAt, udpHeader+g.config.MinLen)
	put(maxAt, udpHeader+g.config.MaxLen)
	if g.config.FrameMax > 0 {
		put(frameMinAt, udpHeader+g.config.FrameMin)
		put(frameMaxAt, udpHeader+g.config.FrameMax)
	} else {
		put(frameMinAt, 1<<16)
	}
	atomic.StoreUint32(chosen, spare)
}

// Copied drops further copies of a spent packet in the kernel: those from the same address or, if it came from another
// one already, all. The server calls it for a packet that authenticated and is a copy.
func (g *Gate) Copied(packet []byte, from netip.Addr, elsewhere bool) {
	if g == nil || len(packet) < HeadLen {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.copied == nil {
		return
	}
	head := packet[:32]
	set := int(binary.NativeEndian.Uint64(head) % copySets)
	entries := g.copied[set*ways*entryLen:][:ways*entryLen]
	entry := g.entry(entries, head, set)
	state := word64(entry, stateAt)
	if *state == 0 {
		copy(entry[8:], head[8:])
		if !elsewhere {
			hi, lo := words(from)
			*word64(entry, fromAt), *word64(entry, fromAt+8) = hi, lo
		}
	}
	if elsewhere {
		atomic.StoreUint64(state, fromAny)
	} else {
		atomic.CompareAndSwapUint64(state, 0, fromOne)
	}
	atomic.StoreUint64(word64(entry, 0), binary.NativeEndian.Uint64(head))
}

// entry returns the entry of a packet, or the oldest of its set, emptied.
func (g *Gate) entry(entries, head []byte, set int) []byte {
	for way := range ways {
		e := entries[way*entryLen:][:entryLen]
		if string(e[:32]) == string(head) && *word64(e, stateAt) != 0 {
			return e
		}
	}
	way := int(g.next[set])
	g.next[set] = uint8((way + 1) % ways)
	e := entries[way*entryLen:][:entryLen]
	atomic.StoreUint64(word64(e, stateAt), 0)
	clear(e)
	return e
}

// words returns an address as 16 bytes, those of IPv4 mapped into IPv6, in two words of this machine.
func words(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[8:])
}

func word64(b []byte, at int) *uint64 { return (*uint64)(unsafe.Pointer(&b[at])) }

func word32(b []byte, at int) *uint32 { return (*uint32)(unsafe.Pointer(&b[at])) }

// SetOwn replaces this host's addresses. One for which there is no room is left out: XDP drops nothing that is for it.
func (g *Gate) SetOwn(list []netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.own == nil {
		return
	}
	table := make([]byte, len(g.own))
	for _, a := range list {
		hi, lo := words(a)
		set := int((hi ^ lo) * ownMix >> ownShift)
		for e := table[set<<ownSetShift:][:ownWays*16]; len(e) > 0; e = e[16:] {
			if *word64(e, 0)|*word64(e, 8) == 0 {
				*word64(e, 0), *word64(e, 8) = hi, lo
				break
			}
		}
	}
	for at := 0; at < len(table); at += 8 {
		if was, is := word64(g.own, at), *word64(table, at); *was != is {
			atomic.StoreUint64(was, is)
		}
	}
}

// Counts returns what was dropped so far. After Close it returns the last counts.
func (g *Gate) Counts() Counts {
	if g == nil {
		return Counts{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.counts == nil {
		return g.last
	}
	c := Counts{}
	for cpu := range g.cpus {
		for i, n := range []*uint64{&c.Length, &c.Cut, &c.Tag, &c.Spent, &c.Elsewhere} {
			at := cpu<<countShift + 8*i
			dropped := atomic.LoadUint64(word64(g.counts, at+xdpLine))
			*n += atomic.LoadUint64(word64(g.counts, at)) + dropped
			c.XDP += dropped
		}
	}
	return c
}

// AttachPacket makes the gate the filter of a packet socket for IPv4 or IPv6, for good. The socket gets snap bytes of a
// packet.
func (g *Gate) AttachPacket(fd int, six bool, snap int) error {
	p := g.program()
	if six {
		return g.filter(fd, p.packet6(int32(snap)))
	}
	return g.filter(fd, p.packet4(int32(snap)))
}

// AttachBound makes the gate the filter of a bound UDP socket, for good.
func (g *Gate) AttachBound(fd int, six bool, snap int) error {
	return g.filter(fd, g.program().bound(six, int32(snap)))
}

// AttachXDP puts the gate on interfaces, until Close or the end of the process. It returns those where it is, with
// the way in which it is attached in the name ("eth0 (native)"), and why it is not on the others. It drops nothing
// before SetOwn.
func (g *Gate) AttachXDP(list []Interface) (on []Interface, problems []error) {
	program, err := load(ebpf.XDP, g.program().frames())
	if err != nil {
		return nil, []error{err}
	}
	defer program.Close() // links hold it
	for _, i := range list {
		l, mode, err := attach(program, i)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		g.mu.Lock()
		g.links = append(g.links, l)
		g.mu.Unlock()
		on = append(on, Interface{i.Index, fmt.Sprintf("%s (%s)", i.Name, mode)})
	}
	return on, problems
}

func (g *Gate) program() *program { return &program{maps: g.kernel, cpus: g.cpus} }

func load(kind ebpf.ProgramType, code asm.Instructions) (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "spa_gate", Type: kind, Instructions: code, License: "MIT"})
	return p, explained(err)
}

// filter attaches a program to a socket and locks it there: an attacker who takes over the process cannot receive
// anything else with that socket.
func (g *Gate) filter(fd int, code asm.Instructions) error {
	program, err := load(ebpf.SocketFilter, code)
	if err != nil {
		return err
	}
	defer program.Close() // the socket holds it
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, program.FD()); err != nil {
		return fmt.Errorf("attaching the gate: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1); err != nil {
		return fmt.Errorf("locking the gate: %w", err)
	}
	return nil
}

// Seal closes the descriptors of the maps, once everything is attached: what is mapped stays.
func (g *Gate) Seal() error {
	var errs []error
	for _, m := range []*ebpf.Map{g.kernel.settings, g.kernel.copied, g.kernel.own, g.kernel.counts} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// Close takes the gate off the interfaces. The filters of sockets stay with them. Counts stay readable.
func (g *Gate) Close() error {
	if g == nil {
		return nil
	}
	last := g.Counts()
	g.mu.Lock()
	defer g.mu.Unlock()
	errs := []error{g.Seal()}
	for _, l := range g.links {
		errs = append(errs, l.Close())
	}
	for _, memory := range []*[]byte{&g.settings, &g.copied, &g.own, &g.counts} {
		if *memory != nil {
			errs = append(errs, unix.Munmap(*memory))
		}
		*memory = nil
	}
	g.links, g.last = nil, last
	return errors.Join(errs...)
}
