package survey

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// restores follows the connection mark through registers until one is set as the packet's mark.
func (r *nftRule) restores(bits uint32) bool {
	held := make(map[uint32]uint32) // which bits of the connection mark a register has
	for _, e := range r.steps {
		a := e.attrs
		switch {
		case e.name == "ct" && a.has(unix.NFTA_CT_DREG) && a.u32(unix.NFTA_CT_KEY) == unix.NFT_CT_MARK:
			held[a.u32(unix.NFTA_CT_DREG)] = ^uint32(0)
		case e.name == "bitwise":
			from, mask := held[a.u32(unix.NFTA_BITWISE_SREG)], a.value(unix.NFTA_BITWISE_MASK)
			if len(mask) == 4 {
				from &= binary.NativeEndian.Uint32(mask)
			}
			held[a.u32(unix.NFTA_BITWISE_DREG)] = from
		case e.name == "meta" && a.has(unix.NFTA_META_SREG) && a.u32(unix.NFTA_META_KEY) == unix.NFT_META_MARK:
			if held[a.u32(unix.NFTA_META_SREG)]&bits != 0 {
				return true
			}
		}
	}
	return false
}
