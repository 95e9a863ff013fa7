package capture

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"sallyport/spa/stun"
)

// Offsets in a filter are relative to the network header, whatever the link layer: SKF_NET_OFF of linux/filter.h.
const netOff = 0xfff00000

// linkRoom is how much is kept of a packet before its network header: enough for any link.
const linkRoom = 64

// snapLen is how much of a packet is kept: the longest candidate or STUN request with one.
func snapLen(c Config) int { return linkRoom + ipv4Header + 40 + udpHeader + c.longest() }

// filter4 accepts whole datagrams to the ports with a length in bounds and, to count them, first fragments of any
// length. Later fragments have no port and are dropped.
func filter4(c Config) []bpf.Instruction {
	const flags, fragmentOffset, moreFragments = netOff + 6, 0x1fff, 0x2000
	bounds := lengthBetween(bpf.LoadIndirect{Off: netOff + 4, Size: 2}, c)
	return slices.Concat(
		[]bpf.Instruction{bpf.LoadAbsolute{Off: netOff + 9, Size: 1}},
		require(bpf.JumpEqual, protoUDP),
		[]bpf.Instruction{bpf.LoadAbsolute{Off: flags, Size: 2}},
		require(bpf.JumpBitsNotSet, fragmentOffset),
		[]bpf.Instruction{bpf.LoadMemShift{Off: netOff}, bpf.LoadIndirect{Off: netOff + 2, Size: 2}},
		requireOneOf(c.Ports...),
		[]bpf.Instruction{
			bpf.LoadAbsolute{Off: flags, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: moreFragments, SkipTrue: uint8(len(bounds))},
		},
		bounds,
		[]bpf.Instruction{bpf.RetConstant{Val: uint32(snapLen(c))}},
	)
}

// filter6 accepts whole datagrams to the ports with a length in bounds and, to count them, those with one extension
// header before UDP.
func filter6(c Config) []bpf.Instruction {
	plain := slices.Concat(
		[]bpf.Instruction{bpf.LoadAbsolute{Off: netOff + ipv6Header + 2, Size: 2}},
		requireOneOf(c.Ports...),
		lengthBetween(bpf.LoadAbsolute{Off: netOff + ipv6Header + 4, Size: 2}, c),
		[]bpf.Instruction{bpf.RetConstant{Val: uint32(snapLen(c))}},
	)
	return slices.Concat(
		[]bpf.Instruction{
			bpf.LoadAbsolute{Off: netOff + 6, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoUDP, SkipTrue: uint8(len(plain))},
		},
		plain,
		extended(c), // with the next header's number still loaded
	)
}

// extended accepts UDP to the ports behind one hop-by-hop, routing, destination options or first fragment header.
func extended(c Config) []bpf.Instruction {
	const header, fragmentOffset = netOff + ipv6Header, 0xfff8
	first := slices.Concat(
		[]bpf.Instruction{bpf.LoadAbsolute{Off: header + 2, Size: 2}},
		require(bpf.JumpBitsNotSet, fragmentOffset),
	)
	return slices.Concat(
		requireOneOf(0, 43, nextFragment, 60),
		[]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nextFragment, SkipTrue: uint8(len(first))}},
		first,
		[]bpf.Instruction{bpf.LoadAbsolute{Off: header, Size: 1}},
		require(bpf.JumpEqual, protoUDP),
		[]bpf.Instruction{
			bpf.LoadAbsolute{Off: header + 1, Size: 1}, // in units of 8 bytes, the first not counted
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 3},
			bpf.TAX{},
			bpf.LoadIndirect{Off: header + 8 + 2, Size: 2},
		},
		requireOneOf(c.Ports...),
		[]bpf.Instruction{bpf.RetConstant{Val: uint32(snapLen(c))}},
	)
}

// require drops the packet unless the loaded value meets the condition.
func require(cond bpf.JumpTest, val uint32) []bpf.Instruction {
	return []bpf.Instruction{bpf.JumpIf{Cond: cond, Val: val, SkipTrue: 1}, bpf.RetConstant{}}
}

// requireOneOf drops the packet unless the loaded value is among vals.
func requireOneOf(vals ...uint16) []bpf.Instruction {
	var prog []bpf.Instruction
	for i, val := range vals {
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(val), SkipTrue: uint8(len(vals) - i)})
	}
	return append(prog, bpf.RetConstant{})
}

// lengthBetween drops the packet unless the length that load loads, which includes the UDP header, is in bounds: those
// of a candidate or, if wanted, of a STUN request that carries one.
func lengthBetween(load bpf.Instruction, c Config) []bpf.Instruction {
	return slices.Concat(
		[]bpf.Instruction{load},
		require(bpf.JumpGreaterOrEqual, uint32(udpHeader+c.MinLen)),
		require(bpf.JumpLessOrEqual, uint32(udpHeader+c.longest())),
		betweenBounds(c),
	)
}

// betweenBounds drops the packet if its loaded length is that of neither a candidate nor a STUN request.
func betweenBounds(c Config) []bpf.Instruction {
	if !c.Browser {
		return nil
	}
	long := require(bpf.JumpGreaterOrEqual, uint32(udpHeader+stun.MinLen))
	return append([]bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: uint32(udpHeader + c.MaxLen), SkipTrue: uint8(len(long))},
	}, long...)
}

// attach makes prog the socket's filter permanently: an attacker who takes over the process cannot capture anything
// else with it.
func attach(fd int, prog []bpf.Instruction) error {
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return fmt.Errorf("assembling the filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, ins := range raw {
		code[i] = unix.SockFilter{Code: ins.Op, Jt: ins.Jt, Jf: ins.Jf, K: ins.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(code)), Filter: unsafe.SliceData(code)}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		return fmt.Errorf("attaching the filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1); err != nil {
		return fmt.Errorf("locking the filter: %w", err)
	}
	return nil
}
