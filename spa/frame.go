package spa

import (
	"errors"
	"net/netip"
	"time"

	"sallyport/keys"
	"sallyport/spa/stun"
)

// ErrFrame means that the client's key did not sign the STUN request that carried a packet: another sender put the
// packet into it.
var ErrFrame = errors.New("STUN request of another sender")

// CheckFrame returns a *Refused with ErrFrame unless the client's key signed message, the STUN request that carried the
// packet of k. Without a message it returns nil. The error is valid until the next call, as one of Open.
func (o *Opener) CheckFrame(k *Knock, message []byte) error {
	if message == nil {
		return nil
	}
	if password := k.icePassword(); !stun.Signed(message, string(password[:])) {
		return o.refuse(ErrFrame, k.Client, time.Time{})
	}
	return nil
}

// Respond returns the response to message, the STUN request that carried the packet of k and came from that address. It
// says whether the request of k was carried out, and nothing else, and it is shorter than message.
func (k *Knock) Respond(message []byte, from netip.AddrPort, s Status) []byte {
	password := k.icePassword()
	if s.Refused() {
		return stun.Refused(message, string(password[:]))
	}
	return stun.Granted(message, string(password[:]), from)
}

func (k *Knock) icePassword() keys.ICEPassword { return k.Key.ICEPassword(k.Nonce[:]) }
