package survey

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// expression is one step of a rule of nf_tables, as the kernel lists it.
type expression struct {
	name  string
	attrs attributes
	run   step
}

// nftRule runs its expressions one after the other, on registers.
type nftRule struct {
	handle uint64
	steps  []expression
	table  *table
}

func (r *nftRule) String() string { return fmt.Sprintf("handle %d", r.handle) }

// machine is the state of one rule while it runs.
type machine struct {
	p         *passage
	table     *table
	registers [64]cell
	match     truth   // of the expressions so far
	bySource  bool    // the sender's address decided one of them
	other     bool    // the sender is not one that the rule matches; everything else may match
	before    passage // with other: the packet before later expressions changed it
	verdicts  []verdict
	choices   [][]byte // a map's values, one of which is in the register chosen
	chosen    uint32
}

// step runs an expression. An expression that is not in steps is not understood.
type step func(*machine, attributes)

// steps are the expressions of nf_tables.
var steps = map[string]step{
	"meta": (*machine).meta, "payload": (*machine).payload, "ct": (*machine).ct, "fib": (*machine).fib,
	"exthdr": (*machine).exthdr, "rt": (*machine).loadUnknown, "numgen": (*machine).loadUnknown,
	"hash": (*machine).loadUnknown, "osf": (*machine).loadUnknown, "xfrm": (*machine).loadUnknown,
	"socket": (*machine).loadUnknown, "tunnel": (*machine).loadUnknown, "inner": (*machine).doubt,
	"cmp": (*machine).cmp, "range": (*machine).inRange, "bitwise": (*machine).bitwise,
	"byteorder": (*machine).byteorder, "immediate": (*machine).immediate,
	"lookup": (*machine).lookup, "dynset": (*machine).dynset,
	"limit": (*machine).limit, "quota": (*machine).quota, "connlimit": (*machine).connlimit,
	"objref": (*machine).objref, "notrack": (*machine).notrack,
	"reject": (*machine).reject, "nat": (*machine).nat, "redir": (*machine).redir,
	"queue": (*machine).unforeseen, "fwd": (*machine).unforeseen, "tproxy": (*machine).tproxy,
	"target":  (*machine).unforeseen, // of xtables: it may be a verdict
	"counter": nothing, "log": nothing, "last": nothing, "masq": nothing, "dup": nothing,
	"secmark": nothing, "synproxy": nothing, "flow_offload": nothing,
}

func nothing(*machine, attributes) {}

func (r *nftRule) weigh(p *passage) ruling {
	m := p.machine()
	m.table = r.table
	for _, e := range r.steps {
		e.run(m, e.attrs)
		if m.match == no {
			return m.leave(false)
		}
		if len(m.verdicts) > 0 {
			break
		}
	}
	if m.other {
		return m.leave(!r.onlyDrops())
	}
	if m.bySource && len(m.verdicts) > 0 {
		p.sources = true
	}
	return ruling{sure: m.match == yes, verdicts: slices.Clone(m.verdicts)}
}

// machine returns a machine for the next rule. A packet reuses a single one.
func (p *passage) machine() *machine {
	m, ok := p.scratch.(*machine)
	if !ok {
		m = &machine{p: p}
		p.scratch = m
	}
	m.match, m.bySource, m.other, m.verdicts, m.choices = yes, false, false, m.verdicts[:0], nil
	clear(m.registers[:])
	return m
}

// leave ends a rule that does not match. It undoes what the rule did after finding that it does not match the sender.
func (m *machine) leave(forOthers bool) ruling {
	if m.other {
		*m.p = m.before
	}
	m.p.sources = m.p.sources || forOthers
	return ruling{}
}

// onlyDrops reports whether the rule can do nothing with a packet but drop it.
func (r *nftRule) onlyDrops() bool {
	for _, e := range r.steps {
		if e.name == "reject" {
			return true
		}
		v, ok := verdictOf(e.attrs.nested(unix.NFTA_IMMEDIATE_DATA))
		if e.name == "immediate" && ok {
			return v.action == drops
		}
	}
	return false
}

// want records the outcome of a comparison, and whether the sender's address was compared.
func (m *machine) want(t truth, source bool) {
	m.bySource = m.bySource || source
	if source && m.p.anybody {
		t = maybe
	}
	if source && t == no {
		m.otherSource()
		return
	}
	m.match = m.match.and(t)
}

// otherSource continues as if the sender matched, to find out whether the sender alone keeps the rule from matching.
func (m *machine) otherSource() {
	if !m.other {
		m.other, m.before = true, *m.p
	}
}

// doubt is an expression that may or may not match.
func (m *machine) doubt(attributes) { m.want(maybe, false) }

func (m *machine) unforeseen(attributes) { m.verdicts = []verdict{{action: anything}} }

// register returns the cells from the beginning of a register: the old names have four of 16 bytes, the new ones
// sixteen of 4 bytes.
func (m *machine) register(number uint32) []cell {
	switch {
	case number >= unix.NFT_REG_1 && number <= unix.NFT_REG_4:
		return m.registers[(number-unix.NFT_REG_1)*16:]
	case number >= unix.NFT_REG32_00 && number <= unix.NFT_REG32_15:
		return m.registers[(number-unix.NFT_REG32_00)*4:]
	}
	return nil
}

// store fills a register, and clears the rest of the last four bytes, as the kernel does.
func (m *machine) store(number uint32, cells []cell) {
	register := m.register(number)
	n := copy(register, cells)
	for ; n%4 != 0; n++ {
		register[n] = cell{0, known}
	}
}

// load returns the first cells of a register.
func (m *machine) load(number uint32, size int) []cell {
	register := m.register(number)
	return register[:min(size, len(register))]
}

// loadUnknown is an expression that loads something unknown. It forgets all registers rather than finding out which
// one it fills: what the others held is seldom needed later.
func (m *machine) loadUnknown(attributes) { clear(m.registers[:]) }

func native32(v uint32) []cell { return bytesOf(binary.NativeEndian.AppendUint32(nil, v)...) }

func ifName(name string) []cell {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return bytesOf(b...)
}

func (m *machine) cmp(a attributes) {
	want := a.value(unix.NFTA_CMP_DATA)
	cells := m.load(a.u32(unix.NFTA_CMP_SREG), len(want))
	source := ofSource(cells)
	m.want(compare(a.u32(unix.NFTA_CMP_OP), cells, want, source), source && !nobodys(want, m.p.v4()))
}

func compare(op uint32, cells []cell, want []byte, source bool) truth {
	equal, below := equals(cells, want), less(cells, want)
	if source {
		equal = no // an address that no rule names
	}
	switch op {
	case unix.NFT_CMP_EQ:
		return equal
	case unix.NFT_CMP_NEQ:
		return equal.not()
	case unix.NFT_CMP_LT:
		return below
	case unix.NFT_CMP_LTE:
		return max(below, equal)
	case unix.NFT_CMP_GT:
		return max(below, equal).not()
	case unix.NFT_CMP_GTE:
		return below.not()
	}
	return maybe
}

func (m *machine) inRange(a attributes) {
	low, high := a.value(unix.NFTA_RANGE_FROM_DATA), a.value(unix.NFTA_RANGE_TO_DATA)
	cells := m.load(a.u32(unix.NFTA_RANGE_SREG), len(low))
	source := ofSource(cells)
	in := within(cells, low, high)
	if source {
		in = no
	}
	const notIn = 1 // NFT_RANGE_NEQ
	if a.u32(unix.NFTA_RANGE_OP) == notIn {
		in = in.not()
	}
	m.want(in, source)
}

func (m *machine) bitwise(a attributes) {
	const op, boolean = 6, 0 // NFTA_BITWISE_OP, NFT_BITWISE_MASK_XOR
	size := int(a.u32(unix.NFTA_BITWISE_LEN))
	from := m.load(a.u32(unix.NFTA_BITWISE_SREG), size)
	mask, xor := a.value(unix.NFTA_BITWISE_MASK), a.value(unix.NFTA_BITWISE_XOR)
	to := make([]cell, len(from))
	if a.u32(op) == boolean && len(mask) >= len(from) && len(xor) >= len(from) {
		for i, c := range from {
			to[i] = masked(c, mask[i], xor[i])
		}
	}
	m.store(a.u32(unix.NFTA_BITWISE_DREG), to)
}

func masked(c cell, mask, xor byte) cell {
	if mask == 0 {
		return cell{xor, known}
	}
	c.b = c.b&mask ^ xor
	return c
}

func (m *machine) byteorder(a attributes) {
	size, unit := int(a.u32(unix.NFTA_BYTEORDER_LEN)), int(a.u32(unix.NFTA_BYTEORDER_SIZE))
	from := m.load(a.u32(unix.NFTA_BYTEORDER_SREG), size)
	to := append([]cell(nil), from...)
	if little := binary.NativeEndian.Uint16([]byte{1, 0}) == 1; little && unit > 0 && len(from)%unit == 0 {
		for i := range to {
			to[i] = from[i/unit*unit+unit-1-i%unit]
		}
	}
	m.store(a.u32(unix.NFTA_BYTEORDER_DREG), to)
}

func (m *machine) immediate(a attributes) {
	data := a.nested(unix.NFTA_IMMEDIATE_DATA)
	if v, ok := verdictOf(data); ok {
		m.decide(v)
		return
	}
	m.store(a.u32(unix.NFTA_IMMEDIATE_DREG), bytesOf(data.raw(unix.NFTA_DATA_VALUE)...))
}

// decide ends the rule with a verdict, unless it is continue.
func (m *machine) decide(v verdict) {
	if v.action != continues {
		m.verdicts = append(m.verdicts, v)
	}
}

// verdictOf reads a verdict (linux/netfilter/nf_tables.h, enum nft_verdicts).
func verdictOf(data attributes) (verdict, bool) {
	if !data.has(unix.NFTA_DATA_VERDICT) {
		return verdict{}, false
	}
	v := data.nested(unix.NFTA_DATA_VERDICT)
	chain := v.str(unix.NFTA_VERDICT_CHAIN)
	switch int32(v.u32(unix.NFTA_VERDICT_CODE)) {
	case 0:
		return verdict{action: drops}, true
	case 1:
		return verdict{action: accepts}, true
	case unix.NFT_CONTINUE, unix.NFT_BREAK:
		return verdict{action: continues}, true
	case unix.NFT_JUMP:
		return verdict{action: jumps, chain: chain}, true
	case unix.NFT_GOTO:
		return verdict{action: goes, chain: chain}, true
	case unix.NFT_RETURN:
		return verdict{action: returns}, true
	}
	return verdict{action: anything}, true
}

// limit, quota and connlimit count packets: the first packet of a flow is within the limit.

func (m *machine) limit(a attributes)     { m.want(certain(a.u32(unix.NFTA_LIMIT_FLAGS)&1 == 0), false) }
func (m *machine) quota(a attributes)     { m.want(certain(a.u32(unix.NFTA_QUOTA_FLAGS)&1 == 0), false) }
func (m *machine) connlimit(a attributes) { m.want(certain(a.u32(2)&1 == 0), false) }

// objref uses a named object. It is not known here whether a quota (2) or a limit (4) matches within or over.
func (m *machine) objref(a attributes) {
	if kind := a.u32(unix.NFTA_OBJREF_IMM_TYPE); kind == 1 || kind == 3 {
		return // counter, helper
	}
	m.want(maybe, false)
}
