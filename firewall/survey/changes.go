package survey

import "net/netip"

// What rules do to a packet other than to let it pass or not.

func (p *passage) leaveUntracked(sure truth) {
	if sure > p.untracked {
		p.untracked, p.notrack = sure, p.here.place()
	}
}

// leadTo is DNAT. The kernel does it once for a flow.
func (p *passage) leadTo(to netip.AddrPort, sure truth) {
	if p.redirect == yes {
		return
	}
	p.redirect = sure
	if sure != yes {
		return
	}
	p.headers = nil
	p.packet.To, p.packet.Port = to.Addr(), to.Port()
	p.local = isLocal(p.rules.Links, to.Addr())
	if l, ok := linkOf(p.rules.Links, to.Addr()); ok {
		p.out = l.Name
	}
}
