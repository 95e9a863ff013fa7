package capture

import "sallyport/spa/stun"

// An unframer takes packets out of STUN requests, without allocating. Only one reader may use it.
type unframer struct {
	longest int // of a packet without a frame
	packet  [stun.MaxPacket]byte
}

// open returns p, or what the STUN request in p carries; that is valid until the next call.
func (u *unframer) open(p Packet) (Packet, verdict) {
	if len(p.Data) <= u.longest {
		return p, passed
	}
	packet, ok := stun.Packet(&u.packet, p.Data)
	if !ok {
		return Packet{}, unframed
	}
	p.Data, p.Frame = packet, p.Data
	return p, framed
}
