package gate

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Results of an XDP program.
const (
	xdpDrop = 1
	xdpPass = 2
)

const (
	etherHeader = 14
	vlanTag     = 4
	etherIPv4   = 0x0800
	etherIPv6   = 0x86dd
	etherVLAN   = 0x8100
	etherQinQ   = 0x88a8
)

// frames is the program on an interface.
func (p *program) frames() asm.Instructions {
	const dataEnd = asm.R3
	within := func(n int32) {
		p.add(asm.Mov.Reg(asm.R1, place), asm.Add.Imm(asm.R1, n), asm.JGT.Reg(asm.R1, dataEnd, "pass"))
	}
	p.add(asm.LoadMem(place, asm.R1, 0, asm.Word), asm.LoadMem(dataEnd, asm.R1, 4, asm.Word))
	within(etherHeader)
	p.load16(asm.R4, place, 12)
	p.add(asm.Add.Imm(place, etherHeader))
	for _, next := range []string{"second tag", "untagged"} {
		p.add(asm.JEq.Imm(asm.R4, etherVLAN, next+" of two"), asm.JNE.Imm(asm.R4, etherQinQ, "untagged"))
		p.at(next + " of two")
		within(vlanTag)
		p.load16(asm.R4, place, 2)
		p.add(asm.Add.Imm(place, vlanTag))
		if next != "untagged" {
			p.at(next)
		}
	}
	p.at("untagged")
	p.add(asm.JEq.Imm(asm.R4, etherIPv6, "IPv6"), asm.JNE.Imm(asm.R4, etherIPv4, "pass"))
	within(ipv4Header + udpHeader + HeadLen)
	p.plain4()
	p.add(asm.Ja.Label("datagram"))
	p.at("IPv6")
	within(ipv6Header + udpHeader + HeadLen)
	p.plain6()
	p.at("datagram")
	p.requireOwn()
	p.choose()
	p.requireLength()
	p.framed(place, 0)
	p.tags(place, 0)
	p.copies(place, 0)
	p.at("pass")
	p.exit(xdpPass)
	p.refusals(xdpLine, "drop")
	p.at("drop")
	p.budget()
	return p.Instructions
}

// plain4 continues with place at the head of a datagram without IP options to a port, and jumps to "pass" with any
// other packet.
func (p *program) plain4() {
	p.add(asm.LoadMem(asm.R1, place, 0, asm.Byte), asm.JNE.Imm(asm.R1, 0x45, "pass"))
	p.load16(asm.R1, place, 6)
	p.add(asm.JSet.Imm(asm.R1, 0x3fff, "pass"), // part of a fragmented datagram
		asm.LoadMem(asm.R1, place, 9, asm.Byte), asm.JNE.Imm(asm.R1, protoUDP, "pass"))
	p.load16(length, place, ipv4Header+4)
	p.load16(asm.R1, place, 2)
	p.add(asm.Sub.Imm(asm.R1, ipv4Header), asm.JNE.Reg(asm.R1, length, "pass"))
	p.load16(asm.R1, place, ipv4Header+2)
	p.requirePort(dropAt, "pass")
	p.address4(sourceAt, place, 12)
	p.address4(ownAt, place, 16)
	p.add(asm.Add.Imm(place, ipv4Header+udpHeader))
}

// plain6 is plain4 for IPv6.
func (p *program) plain6() {
	p.add(asm.LoadMem(asm.R1, place, 0, asm.Byte), asm.And.Imm(asm.R1, 0xf0), asm.JNE.Imm(asm.R1, 0x60, "pass"),
		asm.LoadMem(asm.R1, place, 6, asm.Byte), asm.JNE.Imm(asm.R1, protoUDP, "pass"))
	p.load16(length, place, ipv6Header+4)
	p.load16(asm.R1, place, 4)
	p.add(asm.JNE.Reg(asm.R1, length, "pass"))
	p.load16(asm.R1, place, ipv6Header+2)
	p.requirePort(dropAt, "pass")
	p.address6(sourceAt, place, 8)
	p.address6(ownAt, place, 24)
	p.add(asm.Add.Imm(place, ipv6Header+udpHeader))
}

// requireOwn jumps to "pass" unless the destination is an address of this host.
func (p *program) requireOwn() {
	p.add(asm.LoadMem(asm.R1, asm.R10, ownAt, asm.DWord), asm.LoadMem(asm.R2, asm.R10, ownAt+8, asm.DWord),
		asm.Mov.Reg(asm.R3, asm.R1), asm.Or.Reg(asm.R3, asm.R2), asm.JEq.Imm(asm.R3, 0, "pass"), // as an empty entry
		asm.Mov.Reg(asm.R3, asm.R1), asm.Xor.Reg(asm.R3, asm.R2), asm.LoadImm(asm.R4, signed(ownMix), asm.DWord),
		asm.Mul.Reg(asm.R3, asm.R4), asm.RSh.Imm(asm.R3, ownShift), asm.LSh.Imm(asm.R3, ownSetShift),
		asm.LoadMapValue(asm.R4, p.own.FD(), 0), asm.Add.Reg(asm.R4, asm.R3))
	for way := range int16(ownWays) {
		next := fmt.Sprint("own", way)
		p.add(asm.LoadMem(asm.R3, asm.R4, 16*way, asm.DWord), asm.JNE.Reg(asm.R3, asm.R1, next),
			asm.LoadMem(asm.R3, asm.R4, 16*way+8, asm.DWord), asm.JEq.Reg(asm.R3, asm.R2, "own"))
		p.at(next)
	}
	p.add(asm.Ja.Label("pass"))
	p.at("own")
}

func signed(v uint64) int64 { return int64(v) }

// budget lets packets through to the host as long as there is some, and counts and drops the rest. It fills up as time
// passes, as the kernel's own limit of answers does: a flood does not make the host fall silent after it.
func (p *program) budget() {
	p.add(asm.FnKtimeGetCoarseNs.Call(), asm.Mov.Reg(values, asm.R0))
	p.ownCount("pass")
	p.add(asm.LoadMem(asm.R2, asm.R1, filledOf, asm.DWord), asm.LoadMem(asm.R3, asm.R1, budgetOf, asm.DWord),
		asm.JLE.Reg(values, asm.R2, "full"), asm.StoreMem(asm.R1, filledOf, values, asm.DWord),
		asm.Sub.Reg(values, asm.R2), asm.Add.Reg(asm.R3, values), asm.JLE.Imm(asm.R3, second, "full"),
		asm.Mov.Imm(asm.R3, second))
	p.at("full")
	p.add(asm.JLT.Imm(asm.R3, second/Unhindered, "exhausted"), asm.Sub.Imm(asm.R3, second/Unhindered),
		asm.StoreMem(asm.R1, budgetOf, asm.R3, asm.DWord), asm.Ja.Label("pass"))
	p.at("exhausted")
	p.add(asm.StoreMem(asm.R1, budgetOf, asm.R3, asm.DWord))
	p.count(xdpLine)
	p.exit(xdpDrop)
}

// attach puts the program on an interface: in its driver, or where that has no XDP, in the kernel's receive path. The
// link ends with its descriptor.
func attach(program *ebpf.Program, i Interface) (link.Link, string, error) {
	l, native := link.AttachXDP(link.XDPOptions{Program: program, Interface: i.Index, Flags: link.XDPDriverMode})
	if native == nil {
		return l, "native", nil
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: i.Index, Flags: link.XDPGenericMode})
	if err == nil {
		return l, "generic", nil
	}
	if errors.Is(native, unix.EBUSY) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return nil, "", fmt.Errorf("%s has another XDP program (ip link show dev %[1]s)", i.Name)
	}
	return nil, "", fmt.Errorf("%s: %w", i.Name, err)
}
