package spa

import (
	"errors"
	"net/netip"

	"sallyport/spa/stun"
)

// ErrFrame means that the client's key did not sign the STUN request that carried a packet: somebody else put the
// packet into it.
var ErrFrame = errors.New("STUN request of another sender")

// CheckFrame returns a *Refused with ErrFrame unless the client's key signed message, the STUN request that carried the
// packet of k. It is nil if the packet came without one.
func (k *Knock) CheckFrame(message []byte) error {
	if message != nil && !stun.Signed(message, k.icePassword()) {
		return &Refused{Err: ErrFrame, Client: k.Client}
	}
	return nil
}

// Respond returns the response to message, the STUN request that carried the packet of k and came from that address. It
// says whether the request of k was carried out, and nothing else, and it is shorter than message.
func (k *Knock) Respond(message []byte, from netip.AddrPort, s Status) []byte {
	if s.Refused() {
		return stun.Refused(message, k.icePassword())
	}
	return stun.Granted(message, k.icePassword(), from)
}

func (k *Knock) icePassword() string { return k.Key.ICEPassword(k.Nonce[:]) }
