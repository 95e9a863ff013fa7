package gate

import (
	"slices"

	"github.com/cilium/ebpf/asm"
)

// Registers that calls of helpers preserve.
const (
	ctx    = asm.R6 // the packet's context
	values = asm.R7 // the generation of settings in force
	place  = asm.R8 // socket: where the UDP header is, from the network header on; XDP: the header or head itself
	length = asm.R9 // of the UDP header and payload; then the reason to drop
)

// The stack, from its top down.
const (
	headAt   = -HeadLen      // the packet's head
	headerAt = headAt - 48   // its IP and UDP headers
	sourceAt = headerAt - 16 // its source address
	ownAt    = sourceAt - 16 // its destination address
	probeAt  = ownAt - 24
)

const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8

	protoUDP     = 17
	nextFragment = 44

	fromNetwork = 1 // BPF_HDR_START_NET
	netOff      = -0x100000

	cookie = 0x2112a442 // RFC 8489, 5
)

// reasons to drop a packet are labels of the programs, in the order of their counters.
var reasons = [...]string{"length", "cut", "tag", "spent", "elsewhere"}

// A program is written in order; labels are unique within it.
type program struct {
	asm.Instructions
	label string // of the next instruction
	maps
	cpus int
}

func (p *program) add(list ...asm.Instruction) {
	for _, ins := range list {
		if p.label != "" {
			ins, p.label = ins.WithSymbol(p.label), ""
		}
		p.Instructions = append(p.Instructions, ins)
	}
}

// at names the next instruction.
func (p *program) at(label string) {
	if p.label != "" {
		p.add(asm.Ja.Label(label))
	}
	p.label = label
}

func (p *program) exit(result int32) { p.add(asm.Mov.Imm(asm.R0, result), asm.Return()) }

// load16 loads a number of a header in network order.
func (p *program) load16(to, base asm.Register, offset int16) {
	p.add(asm.LoadMem(to, base, offset, asm.Half), asm.HostTo(asm.BE, to, asm.Half))
}

// choose sets values to the generation in force.
func (p *program) choose() {
	p.add(asm.LoadMapValue(asm.R1, p.settings.FD(), 0), asm.LoadMem(asm.R1, asm.R1, 0, asm.Word),
		asm.LoadMapValue(values, p.settings.FD(), generationAt(0)), asm.JEq.Imm(asm.R1, 0, "chosen"),
		asm.LoadMapValue(values, p.settings.FD(), generationAt(1)))
	p.at("chosen")
}

// requirePort jumps to otherwise unless the port in R1 is in the bitmap.
func (p *program) requirePort(bitmap uint32, otherwise string) {
	p.add(asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, 3), asm.And.Imm(asm.R2, bitmapLen-1),
		asm.LoadMapValue(asm.R3, p.settings.FD(), bitmap), asm.Add.Reg(asm.R3, asm.R2),
		asm.LoadMem(asm.R3, asm.R3, 0, asm.Byte),
		asm.And.Imm(asm.R1, 7), asm.RSh.Reg(asm.R3, asm.R1), asm.And.Imm(asm.R3, 1), asm.JEq.Imm(asm.R3, 0, otherwise))
}

// requireLength jumps to "length" unless the length is possible.
func (p *program) requireLength() {
	bound := func(offset int16) { p.add(asm.LoadMem(asm.R1, values, offset, asm.Word)) }
	bound(minAt)
	p.add(asm.JLT.Reg(length, asm.R1, "length"))
	bound(maxAt)
	p.add(asm.JLE.Reg(length, asm.R1, "possible"))
	bound(frameMinAt)
	p.add(asm.JLT.Reg(length, asm.R1, "length"))
	bound(frameMaxAt)
	p.add(asm.JGT.Reg(length, asm.R1, "length"))
	p.at("possible")
}

// framed jumps to "good" if the length is that of a STUN request and it has the cookie, and to "tag" if it has not.
func (p *program) framed(base asm.Register, offset int16) {
	p.add(asm.LoadMem(asm.R1, values, maxAt, asm.Word), asm.JLE.Reg(length, asm.R1, "plain"),
		asm.LoadMem(asm.R1, base, offset+4, asm.Word), asm.HostTo(asm.BE, asm.R1, asm.Word),
		asm.JEq.Imm32(asm.R1, cookie, "good"), asm.Ja.Label("tag"))
	p.at("plain")
}

// tags continues at "good" if the tag is right under one of the keys, or else jumps to "tag".
func (p *program) tags(base asm.Register, offset int16) {
	for key := range int16(MaxKeys) {
		p.add(asm.LoadMem(asm.R1, values, keysAt, asm.Word), asm.JLE.Imm(asm.R1, int32(key), "tag"))
		p.siphash(base, offset, key*keyLen)
	}
	p.add(asm.Ja.Label("tag"))
	p.at("good")
}

// siphash jumps to "good" if the tag after 32 bytes is their SipHash-2-4 under the key. The state is in R1 to R4.
func (p *program) siphash(base asm.Register, offset, key int16) {
	v := [...]asm.Register{asm.R1, asm.R2, asm.R3, asm.R4}
	p.add(asm.LoadMem(v[0], values, key, asm.DWord), asm.LoadMem(v[1], values, key+8, asm.DWord),
		asm.LoadMem(v[2], values, key+16, asm.DWord), asm.LoadMem(v[3], values, key+24, asm.DWord))
	block := func() {
		p.add(asm.Xor.Reg(v[3], asm.R0))
		p.rounds(2, v)
		p.add(asm.Xor.Reg(v[0], asm.R0))
	}
	for word := range int16(4) {
		p.add(asm.LoadMem(asm.R0, base, offset+8*word, asm.DWord), asm.HostTo(asm.LE, asm.R0, asm.DWord))
		block()
	}
	p.add(asm.LoadImm(asm.R0, 32<<56, asm.DWord)) // the length, and no bytes after the last word
	block()
	p.add(asm.Xor.Imm(v[2], 0xff))
	p.rounds(4, v)
	p.add(asm.Xor.Reg(v[0], v[1]), asm.Xor.Reg(v[2], v[3]), asm.Xor.Reg(v[0], v[2]),
		asm.LoadMem(asm.R0, base, offset+32, asm.DWord), asm.HostTo(asm.BE, asm.R0, asm.DWord),
		asm.JEq.Reg(v[0], asm.R0, "good"))
}

func (p *program) rounds(n int, v [4]asm.Register) {
	mix := func(a, b asm.Register, by int32) {
		p.add(asm.Add.Reg(a, b))
		p.rotate(b, by)
		p.add(asm.Xor.Reg(b, a))
	}
	for range n {
		mix(v[0], v[1], 13)
		p.rotate(v[0], 32)
		mix(v[2], v[3], 16)
		mix(v[0], v[3], 21)
		mix(v[2], v[1], 17)
		p.rotate(v[2], 32)
	}
}

// rotate rotates to the left. It uses R5.
func (p *program) rotate(r asm.Register, by int32) {
	p.add(asm.Mov.Reg(asm.R5, r), asm.LSh.Imm(asm.R5, by), asm.RSh.Imm(r, 64-by), asm.Or.Reg(r, asm.R5))
}

// copies jumps to "spent" or "elsewhere" if the packet is a further copy. Its source address is on the stack.
func (p *program) copies(base asm.Register, offset int16) {
	p.add(asm.LoadMem(asm.R1, base, offset, asm.DWord), asm.Mov.Reg(asm.R0, asm.R1), asm.And.Imm(asm.R1, copySets-1),
		asm.LSh.Imm(asm.R1, setShift), asm.LoadMapValue(asm.R2, p.copied.FD(), 0), asm.Add.Reg(asm.R2, asm.R1))
	for way := range int16(ways) {
		entry, next := way*entryLen, []string{"copy1", "copy2", "copy3", "fresh"}[way]
		p.add(asm.LoadMem(asm.R1, asm.R2, entry, asm.DWord), asm.JNE.Reg(asm.R1, asm.R0, next))
		for word := int16(8); word < 32; word += 8 {
			p.add(asm.LoadMem(asm.R1, asm.R2, entry+word, asm.DWord),
				asm.LoadMem(asm.R3, base, offset+word, asm.DWord), asm.JNE.Reg(asm.R1, asm.R3, next))
		}
		p.add(asm.LoadMem(asm.R4, asm.R2, entry+stateAt, asm.DWord), asm.JEq.Imm(asm.R4, 0, next))
		moved := next + "moved"
		for word := int16(0); word < 16; word += 8 {
			p.add(asm.LoadMem(asm.R1, asm.R2, entry+fromAt+word, asm.DWord),
				asm.LoadMem(asm.R3, asm.R10, sourceAt+word, asm.DWord), asm.JNE.Reg(asm.R1, asm.R3, moved))
		}
		p.add(asm.Ja.Label("spent"))
		p.at(moved)
		p.add(asm.JEq.Imm(asm.R4, fromAny, "elsewhere"))
		p.at(next)
	}
}

// address4 puts an IPv4 address of a header onto the stack, as the mapped one.
func (p *program) address4(to int16, base asm.Register, offset int16) {
	p.add(asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.R10, to, asm.R1, asm.DWord),
		asm.StoreMem(asm.R10, to+8, asm.R1, asm.Half), asm.StoreImm(asm.R10, to+10, 0xffff, asm.Half),
		asm.LoadMem(asm.R1, base, offset, asm.Word), asm.StoreMem(asm.R10, to+12, asm.R1, asm.Word))
}

// address6 is address4 for IPv6.
func (p *program) address6(to int16, base asm.Register, offset int16) {
	for word := int16(0); word < 16; word += 8 {
		p.add(asm.LoadMem(asm.R1, base, offset+word, asm.DWord), asm.StoreMem(asm.R10, to+word, asm.R1, asm.DWord))
	}
}

// refusals are the places to jump to with a packet that must not pass. The kernel refuses code that is never reached.
func (p *program) refusals(line int32, to string) {
	for i, name := range reasons {
		if !slices.ContainsFunc(p.Instructions, func(i asm.Instruction) bool { return i.Reference() == name }) {
			continue
		}
		p.at(name)
		p.add(asm.Mov.Imm(length, line+int32(8*i)), asm.Ja.Label(to))
	}
}

// ownCount sets R1 to this processor's counters, or jumps.
func (p *program) ownCount(otherwise string) {
	p.add(asm.FnGetSmpProcessorId.Call(), asm.JGE.Imm(asm.R0, int32(p.cpus), otherwise),
		asm.LSh.Imm(asm.R0, countShift), asm.LoadMapValue(asm.R1, p.counts.FD(), 0), asm.Add.Reg(asm.R1, asm.R0))
}

// count adds to the counter of the reason in length, among those of the line. Without CAP_PERFMON the kernel refuses an
// offset that depends on the path. It is not atomic: a processor receives one packet at a time.
func (p *program) count(line int32) {
	for i, name := range reasons {
		at := line + int32(8*i)
		p.add(asm.JNE.Imm(length, at, "not "+name), asm.LoadMem(asm.R2, asm.R1, int16(at), asm.DWord),
			asm.Add.Imm(asm.R2, 1), asm.StoreMem(asm.R1, int16(at), asm.R2, asm.DWord), asm.Ja.Label("counted"))
		p.at("not " + name)
	}
	p.at("counted")
}
