package survey

import "net/netip"

// How rules change a packet, besides accepting or dropping it.

func (p *passage) leaveUntracked(sure truth) {
	if sure = sure.and(p.reached); sure > p.untracked {
		p.untracked, p.notrack = sure, p.here.place()
	}
}

// leadTo is DNAT. The kernel applies it once to a flow, and only if it tracks the flow. An invalid address means an
// unknown one.
func (p *passage) leadTo(to netip.AddrPort, sure truth) {
	if p.redirect == yes || p.untracked == yes {
		return
	}
	sure = sure.and(p.reached)
	p.detours.note(p, to, false, sure)
	if !to.IsValid() {
		sure = maybe
	}
	p.redirect = sure
	if sure == yes {
		p.moveTo(to)
	}
}

func (p *passage) moveTo(to netip.AddrPort) {
	p.headers = nil
	p.packet.To, p.packet.Port = to.Addr(), to.Port()
	p.heads()
}

// handTo is TPROXY: the packet is unchanged, and goes to the socket that the kernel would choose for a packet to this
// address and port.
func (p *passage) handTo(to netip.AddrPort, sure truth) {
	p.detours.note(p, to, true, sure.and(p.reached))
}

// self returns the address to which the kernel redirects packets for another machine: the first one of the interface
// by which they arrive.
func (p *passage) self() netip.Addr {
	if p.local {
		return p.packet.To
	}
	for _, prefix := range p.link.Prefixes {
		if a := prefix.Addr(); a.Is4() == p.v4() && !a.IsLinkLocalUnicast() {
			return a
		}
	}
	return p.packet.To
}
