package gate

import "github.com/cilium/ebpf/asm"

// load copies bytes from an offset of the network header, which is in R2, onto the stack, and jumps if it cannot.
func (p *program) load(to, n int32, otherwise string) {
	p.add(asm.Mov.Reg(asm.R1, ctx), asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, to), asm.Mov.Imm(asm.R4, n),
		asm.Mov.Imm(asm.R5, fromNetwork), asm.FnSkbLoadBytesRelative.Call(), asm.JNE.Imm(asm.R0, 0, otherwise))
}

// loadHeader loads the headers at the start of the packet. Where they are not in one piece it loads word by word, as a
// classic filter does, and fails where that fails.
func (p *program) loadHeader(n int32) {
	p.add(asm.Mov.Imm(asm.R2, 0))
	p.load(headerAt, n, "pieces")
	p.add(asm.Ja.Label("header"))
	p.at("pieces")
	for at := int32(0); at < n; at += 4 {
		p.add(asm.LoadAbs(netOff+at, asm.Word), asm.HostTo(asm.BE, asm.R0, asm.Word),
			asm.StoreMem(asm.R10, int16(headerAt+at), asm.R0, asm.Word))
	}
	p.at("header")
}

// loadUDP loads the UDP header at place behind options or an extension header.
func (p *program) loadUDP(to int32) {
	p.add(asm.Mov.Reg(asm.R2, place))
	p.load(to, udpHeader, "udp pieces")
	p.add(asm.Ja.Label("udp"))
	p.at("udp pieces")
	for at := int32(0); at < udpHeader; at += 4 {
		p.add(asm.LoadInd(asm.R0, place, netOff+at, asm.Word), asm.HostTo(asm.BE, asm.R0, asm.Word),
			asm.StoreMem(asm.R10, int16(to+at), asm.R0, asm.Word))
	}
	p.at("udp")
}

// packet4 is the filter of the packet socket for IPv4. It lets through what is whole and passes the gate, and of a
// fragmented datagram its first fragment, if that has a good tag.
func (p *program) packet4(snap int32) asm.Instructions {
	const flags, fragmentOffset, moreFragments = headerAt + 6, 0x1fff, 0x2000
	p.add(asm.Mov.Reg(ctx, asm.R1))
	p.loadHeader(ipv4Header + udpHeader)
	p.add(asm.LoadMem(asm.R1, asm.R10, headerAt+9, asm.Byte), asm.JNE.Imm(asm.R1, protoUDP, "drop"))
	p.load16(asm.R1, asm.R10, flags)
	p.add(asm.JSet.Imm(asm.R1, fragmentOffset, "drop"),
		asm.LoadMem(place, asm.R10, headerAt, asm.Byte), asm.And.Imm(place, 0xf), asm.LSh.Imm(place, 2),
		asm.JEq.Imm(place, ipv4Header, "udp"))
	p.loadUDP(headerAt + ipv4Header)
	p.load16(asm.R1, asm.R10, headerAt+ipv4Header+2)
	p.requirePort(knockAt, "drop")
	p.choose()
	p.load16(length, asm.R10, headerAt+ipv4Header+4)
	p.load16(asm.R1, asm.R10, flags)
	p.add(asm.JSet.Imm(asm.R1, moreFragments, "possible"))
	p.requireLength()
	p.loadHead()
	p.add(asm.LoadMem(asm.R1, asm.R10, headerAt+6, asm.Byte), asm.JSet.Imm(asm.R1, moreFragments>>8, "plain"))
	p.framed(asm.R10, headAt)
	p.tags(asm.R10, headAt)
	p.address4(sourceAt, asm.R10, headerAt+12)
	p.copies(asm.R10, headAt)
	p.ends(snap)
	return p.Instructions
}

// packet6 is packet4 for IPv6. Of datagrams with an extension header it lets through those with one and a good tag.
func (p *program) packet6(snap int32) asm.Instructions {
	const extension, fragmentOffset = headerAt + ipv6Header, 0xfff8
	p.add(asm.Mov.Reg(ctx, asm.R1))
	p.loadHeader(ipv6Header + udpHeader)
	p.add(asm.Mov.Imm(place, ipv6Header), asm.LoadMem(asm.R1, asm.R10, headerAt+6, asm.Byte),
		asm.JEq.Imm(asm.R1, protoUDP, "udp"), asm.JEq.Imm(asm.R1, 0, "extended"), asm.JEq.Imm(asm.R1, 43, "extended"),
		asm.JEq.Imm(asm.R1, 60, "extended"), asm.JNE.Imm(asm.R1, nextFragment, "drop"))
	p.load16(asm.R1, asm.R10, extension+2)
	p.add(asm.JSet.Imm(asm.R1, fragmentOffset, "drop"))
	p.at("extended")
	p.add(asm.LoadMem(asm.R1, asm.R10, extension, asm.Byte), asm.JNE.Imm(asm.R1, protoUDP, "drop"),
		asm.LoadMem(place, asm.R10, extension+1, asm.Byte), // in units of 8 bytes, the first not counted
		asm.LSh.Imm(place, 3), asm.Add.Imm(place, ipv6Header+8))
	p.loadUDP(headerAt + ipv6Header)
	p.load16(asm.R1, asm.R10, headerAt+ipv6Header+2)
	p.requirePort(knockAt, "drop")
	p.choose()
	p.load16(length, asm.R10, headerAt+ipv6Header+4)
	p.add(asm.JNE.Imm(place, ipv6Header, "possible"))
	p.requireLength()
	p.loadHead()
	p.add(asm.LoadMem(asm.R1, asm.R10, headerAt+6, asm.Byte), asm.JNE.Imm(asm.R1, protoUDP, "plain"))
	p.framed(asm.R10, headAt)
	p.tags(asm.R10, headAt)
	p.address6(sourceAt, asm.R10, headerAt+8)
	p.copies(asm.R10, headAt)
	p.ends(snap)
	return p.Instructions
}

// loadHead loads the head of the packet. Where that is not in one piece it must find out where the network header is:
// a link's header before it is one of Ethernet, or there is none. Of another link the packet passes unchecked.
func (p *program) loadHead() {
	p.add(asm.Mov.Reg(asm.R2, place), asm.Add.Imm(asm.R2, udpHeader))
	p.load(headAt, HeadLen, "scattered")
	p.add(asm.Ja.Label("head"))
	p.at("scattered")
	for i, link := range []int32{14, 0} {
		next := []string{"bare", "good"}[i]
		p.add(asm.Mov.Imm(asm.R2, link))
		p.loadBytes(probeAt, ipv4Header, next)
		for word := int16(0); word < ipv4Header; word += 4 {
			p.add(asm.LoadMem(asm.R1, asm.R10, probeAt+word, asm.Word),
				asm.LoadMem(asm.R2, asm.R10, headerAt+word, asm.Word), asm.JNE.Reg(asm.R1, asm.R2, next))
		}
		p.add(asm.Mov.Reg(asm.R2, place), asm.Add.Imm(asm.R2, link+udpHeader))
		p.loadBytes(headAt, HeadLen, "cut")
		p.add(asm.Ja.Label("head"))
		if next == "bare" {
			p.at(next)
		}
	}
	p.at("head")
}

// loadBytes is load from an offset of the packet as the socket sees it.
func (p *program) loadBytes(to, n int32, otherwise string) {
	p.add(asm.Mov.Reg(asm.R1, ctx), asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, to), asm.Mov.Imm(asm.R4, n),
		asm.FnSkbLoadBytes.Call(), asm.JNE.Imm(asm.R0, 0, otherwise))
}

// bound is the filter of a bound socket, which sees datagrams from the UDP header on.
func (p *program) bound(six bool, snap int32) asm.Instructions {
	p.add(asm.Mov.Reg(ctx, asm.R1), asm.LoadMem(length, asm.R1, 0, asm.Word)) // __sk_buff.len
	p.choose()
	p.requireLength()
	p.add(asm.Mov.Imm(asm.R2, udpHeader))
	p.loadBytes(headAt, HeadLen, "cut")
	p.framed(asm.R10, headAt)
	p.tags(asm.R10, headAt)
	at, n := int32(12), int32(4)
	if six {
		at, n = 8, 16
	}
	p.add(asm.Mov.Imm(asm.R2, at))
	p.load(headerAt, n, "fresh")
	if six {
		p.address6(sourceAt, asm.R10, headerAt)
	} else {
		p.address4(sourceAt, asm.R10, headerAt)
	}
	p.copies(asm.R10, headAt)
	p.ends(snap)
	return p.Instructions
}

// ends lets the packet through at "fresh", and counts and drops it elsewhere.
func (p *program) ends(snap int32) {
	p.exit(snap)
	p.refusals(0, "count")
	p.at("count")
	p.ownCount("drop")
	p.count(0)
	p.at("drop")
	p.exit(0)
}
