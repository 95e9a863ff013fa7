package survey

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"sallyport/keys/service"
)

// Expressions that read the packet and what the kernel knows about it, and those that change it.

const syn = 2

func (m *machine) meta(a attributes) {
	key := a.u32(unix.NFTA_META_KEY)
	if a.has(unix.NFTA_META_SREG) {
		m.setMeta(key, a.u32(unix.NFTA_META_SREG))
		return
	}
	m.store(a.u32(unix.NFTA_META_DREG), m.p.meta(key))
}

func (m *machine) setMeta(key, register uint32) {
	if key != unix.NFT_META_MARK {
		return
	}
	b, ok := concrete(m.load(register, 4))
	if !ok || m.match.and(m.p.reached) != yes {
		m.p.markKnown = maybe
		return
	}
	m.p.mark = binary.NativeEndian.Uint32(b)
}

// meta returns what a meta key loads.
func (p *passage) meta(key uint32) []cell {
	switch key {
	case unix.NFT_META_L4PROTO:
		return bytesOf(byte(p.packet.Proto))
	case unix.NFT_META_NFPROTO:
		if p.hook == ingress {
			return bytesOf(unix.NFPROTO_NETDEV)
		}
		return bytesOf(p.nfproto())
	case unix.NFT_META_PROTOCOL:
		return bytesOf(binary.BigEndian.AppendUint16(nil, p.etherType())...)
	case unix.NFT_META_IIF:
		return native32(uint32(p.link.Index))
	case unix.NFT_META_IIFNAME:
		return ifName(p.link.Name)
	case unix.NFT_META_OIF:
		return p.metaOut(native32(0))
	case unix.NFT_META_OIFNAME:
		if p.hook == forward && p.out != "" {
			return ifName(p.out)
		}
		return p.metaOut(ifName(""))
	case unix.NFT_META_MARK:
		if p.markKnown == yes {
			return native32(p.mark)
		}
	case unix.NFT_META_PKTTYPE:
		return bytesOf(unix.PACKET_HOST)
	}
	return unknowns(16)
}

// metaOut is for the interface by which the packet leaves: there is none before forward, and there it is unknown.
func (p *passage) metaOut(none []cell) []cell {
	if p.hook == forward {
		return unknowns(len(none))
	}
	return none
}

func (p *passage) nfproto() byte {
	if p.v4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

func (p *passage) etherType() uint16 {
	if p.v4() {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}

func (m *machine) payload(a attributes) {
	if a.has(unix.NFTA_PAYLOAD_SREG) {
		m.p.mangled = true
		return
	}
	header := m.p.header(a.u32(unix.NFTA_PAYLOAD_BASE))
	from, size := int(a.u32(unix.NFTA_PAYLOAD_OFFSET)), int(a.u32(unix.NFTA_PAYLOAD_LEN))
	if from+size > len(header) {
		m.doubt(nil)
		return
	}
	m.store(a.u32(unix.NFTA_PAYLOAD_DREG), header[from:from+size])
}

// headerSize is larger than any offset that a rule reads.
const headerSize = 256

// header returns a header of the packet, as it is now.
func (p *passage) header(base uint32) []cell {
	if p.headers == nil {
		p.headers = map[uint32][]cell{unix.NFT_PAYLOAD_NETWORK_HEADER: unknowns(headerSize),
			unix.NFT_PAYLOAD_TRANSPORT_HEADER: unknowns(headerSize)}
		p.networkHeader(p.headers[unix.NFT_PAYLOAD_NETWORK_HEADER])
		p.transportHeader(p.headers[unix.NFT_PAYLOAD_TRANSPORT_HEADER])
	}
	if h, ok := p.headers[base]; ok {
		return h
	}
	return unknowns(headerSize)
}

func (p *passage) networkHeader(h []cell) {
	to := bytesOf(p.packet.To.AsSlice()...)
	if p.v4() {
		copy(h, bytesOf(0x45))
		copy(h[6:], bytesOf(0x40, 0)) // not a fragment
		copy(h[9:], bytesOf(byte(p.packet.Proto)))
		copy(h[12:], p.sender(4))
		copy(h[16:], to)
		return
	}
	copy(h, bytesOf(0x60))
	copy(h[6:], bytesOf(byte(p.packet.Proto)))
	copy(h[8:], p.sender(16))
	copy(h[24:], to)
}

// sender returns the source address, in a register of n bytes.
func (p *passage) sender(n int) []cell {
	if !p.packet.From.IsValid() {
		return outsiders(n)
	}
	cells := unknowns(n)
	copy(cells, bytesOf(p.packet.From.AsSlice()...))
	return cells
}

func (p *passage) transportHeader(h []cell) {
	ports := binary.BigEndian.AppendUint16(nil, senderPort)
	copy(h, bytesOf(binary.BigEndian.AppendUint16(ports, p.packet.Port)...))
	if p.packet.Proto == service.TCP {
		copy(h[13:], bytesOf(syn))
	}
}

// exthdr finds no IPv6 extension headers; TCP options are unknown.
func (m *machine) exthdr(a attributes) {
	const ipv6, present = 0, 1 // NFT_EXTHDR_OP_IPV6, NFT_EXTHDR_F_PRESENT
	switch {
	case a.u32(unix.NFTA_EXTHDR_OP) != ipv6:
		m.loadUnknown(a)
		m.doubt(nil)
	case a.u32(unix.NFTA_EXTHDR_FLAGS)&present == 0:
		m.want(no, false)
	default:
		m.store(a.u32(unix.NFTA_EXTHDR_DREG), bytesOf(0))
	}
}

// States and status of a connection, with the numbers of nft_ct.c.
const (
	ctInvalid   = 1
	ctNew       = 8
	ctUntracked = 64
	ctDNAT      = 1 << 5 // IPS_DST_NAT
)

func (m *machine) ct(a attributes) {
	if a.has(unix.NFTA_CT_SREG) {
		return
	}
	key, register := a.u32(unix.NFTA_CT_KEY), a.u32(unix.NFTA_CT_DREG)
	if key == unix.NFT_CT_STATE {
		m.store(register, m.p.ctState())
		return
	}
	if m.p.untracked == yes || !m.p.tracking {
		m.want(no, false) // nft_ct_get_eval: without a connection the rule ends
		return
	}
	m.store(register, m.p.ctKey(key))
	if m.p.untracked == maybe {
		m.doubt(nil)
	}
}

func (p *passage) ctState() []cell {
	switch {
	case p.untracked == maybe:
		return unknowns(4)
	case p.untracked == yes:
		return native32(ctUntracked)
	case !p.tracking:
		return native32(ctInvalid)
	}
	return native32(ctNew)
}

func (p *passage) ctKey(key uint32) []cell {
	switch key {
	case unix.NFT_CT_DIRECTION:
		return bytesOf(0)
	case unix.NFT_CT_STATUS:
		return p.ctStatus()
	case unix.NFT_CT_L3PROTOCOL:
		return bytesOf(p.nfproto())
	case unix.NFT_CT_PROTOCOL:
		return bytesOf(byte(p.packet.Proto))
	case unix.NFT_CT_SRC, unix.NFT_CT_SRC_IP, unix.NFT_CT_SRC_IP6:
		return p.sender(16)
	}
	return unknowns(16)
}

func (p *passage) ctStatus() []cell {
	switch p.redirect {
	case yes:
		return native32(ctDNAT)
	case no:
		return native32(0)
	}
	return unknowns(4)
}

// fib looks up the routing table. An outsider is routed by the interface by which its packet arrives.
func (m *machine) fib(a attributes) {
	m.store(a.u32(unix.NFTA_FIB_DREG), m.p.fib(a.u32(unix.NFTA_FIB_RESULT), a.u32(unix.NFTA_FIB_FLAGS)))
}

func (p *passage) fib(result, flags uint32) []cell {
	back := flags&unix.NFTA_FIB_F_SADDR != 0
	switch {
	case flags&unix.NFTA_FIB_F_PRESENT != 0:
		return bytesOf(1)
	case result == unix.NFT_FIB_RESULT_ADDRTYPE && back:
		return native32(unix.RTN_UNICAST)
	case result == unix.NFT_FIB_RESULT_ADDRTYPE:
		if p.local {
			return native32(unix.RTN_LOCAL)
		}
		return native32(unix.RTN_UNICAST)
	case result == unix.NFT_FIB_RESULT_OIF && back:
		return native32(uint32(p.link.Index))
	case result == unix.NFT_FIB_RESULT_OIFNAME && back:
		return ifName(p.link.Name)
	}
	return unknowns(16)
}

func (m *machine) notrack(attributes) { m.p.leaveUntracked(m.match) }

// reject answers with a TCP reset (type 1) or an ICMP error.
func (m *machine) reject(a attributes) {
	answer := Unreachable
	if a.u32(unix.NFTA_REJECT_TYPE) == unix.NFT_REJECT_TCP_RST {
		answer = Reset
	}
	m.verdicts = []verdict{{action: drops, answer: answer}}
}

// nat leads the packet elsewhere if this is DNAT for its family; SNAT changes nothing here.
func (m *machine) nat(a attributes) {
	if f := a.u32(unix.NFTA_NAT_FAMILY); f != unix.NFPROTO_INET && byte(f) != m.p.nfproto() {
		m.want(no, false) // nft_nat_inet_eval
		return
	}
	m.verdicts = []verdict{{action: accepts}}
	if a.u32(unix.NFTA_NAT_TYPE) != unix.NFT_NAT_DNAT {
		return
	}
	m.leadTo(m.p.packet.To, target{
		addr: a.u32(unix.NFTA_NAT_REG_ADDR_MIN), addrMax: a.u32(unix.NFTA_NAT_REG_ADDR_MAX),
		port: a.u32(unix.NFTA_NAT_REG_PROTO_MIN), portMax: a.u32(unix.NFTA_NAT_REG_PROTO_MAX),
	}, (*passage).leadTo)
}

// redir leads the packet to a port of this host.
func (m *machine) redir(a attributes) {
	m.verdicts = []verdict{{action: accepts}}
	m.leadTo(m.p.self(), target{port: a.u32(unix.NFTA_REDIR_REG_PROTO_MIN),
		portMax: a.u32(unix.NFTA_REDIR_REG_PROTO_MAX)}, (*passage).leadTo)
}

// tproxy hands the packet to a socket, if there is one that accepts such packets.
func (m *machine) tproxy(a attributes) {
	const family, addr, port = 1, 2, 3 // NFTA_TPROXY_FAMILY, ..._REG_ADDR, ..._REG_PORT
	if f := a.u32(family); f != unix.NFPROTO_UNSPEC && f != unix.NFPROTO_INET && byte(f) != m.p.nfproto() {
		m.want(no, false)
		return
	}
	m.leadTo(m.p.self(), target{addr: a.u32(addr), port: a.u32(port)}, (*passage).handTo)
	m.want(maybe, false)
}

// target names the registers with a rule's new destination; 0: none.
type target struct{ addr, addrMax, port, portMax uint32 }

// leadTo leads the packet to the destination in the registers. If they hold one of many values of a map, each is
// possible.
func (m *machine) leadTo(to netip.Addr, t target, lead func(*passage, netip.AddrPort, truth)) {
	if at, sure := m.target(to, t); sure {
		lead(m.p, at, m.match)
		return
	}
	before := m.registers
	for _, data := range m.choices {
		m.store(m.chosen, bytesOf(data...))
		if at, sure := m.target(to, t); sure {
			lead(m.p, at, maybe)
		}
	}
	m.registers = before
	lead(m.p, netip.AddrPort{}, maybe)
}

// target returns the destination in the registers, and reports whether it is a single known one.
func (m *machine) target(to netip.Addr, t target) (at netip.AddrPort, sure bool) {
	port := m.p.packet.Port
	if t.addr != 0 {
		b, all := concrete(m.load(t.addr, to.BitLen()/8))
		if !all || t.addrMax != 0 && t.addrMax != t.addr {
			return netip.AddrPort{}, false
		}
		to, _ = netip.AddrFromSlice(b)
	}
	if t.port != 0 {
		b, all := concrete(m.load(t.port, 2))
		if !all || t.portMax != 0 && t.portMax != t.port {
			return netip.AddrPort{}, false
		}
		port = binary.BigEndian.Uint16(b)
	}
	return netip.AddrPortFrom(to, port), true
}
