package spa

import (
	"crypto/rand"
	"encoding/hex"
	"errors"

	"sallyport/keys"
	"sallyport/keys/mac"
)

// Layout of a packet, as PROTOCOL.md names it.
const (
	nonceLen = 24
	macLen   = 32

	sealedIDAt = nonceLen
	gateTagAt  = sealedIDAt + 8
	bodyAt     = gateTagAt + 8
)

// Bounds of a packet's length, the payload of the UDP datagram. A receipt has the length of the packet that it
// answers.
const (
	MinLen = bodyAt + requestMax + macLen // 168
	MaxLen = 256
)

// Nonce makes a packet unique. The server spends it.
type Nonce [nonceLen]byte

// String returns 48 hex digits.
func (n Nonce) String() string { return hex.EncodeToString(n[:]) }

// Sender is what a client needs to know to send to one server.
type Sender struct {
	Server keys.ServerID
	Gate   keys.GateKey
	ID     keys.ID
	Key    keys.Key
}

func (s Sender) check() error {
	if s.Key.IsZero() {
		return errors.New("the sender has no client key")
	}
	if s.Gate.IsZero() {
		return errors.New("the sender has no gate key")
	}
	return nil
}

// Seal returns a packet of 168 to 256 bytes with the request r for s.Server. Each call makes a different packet of a
// different length, even for the same request. An error describes what cannot be requested.
func Seal(r Request, s Sender) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	var buf [requestMax]byte
	return seal(r.append(buf[:0]), s, randomLen()), nil
}

// seal makes a packet of n bytes from a request's encoding, whatever it contains.
func seal(request []byte, s Sender, n int) []byte {
	packet := make([]byte, n)
	nonce := newNonce(s.Key.Hedge(), request)

	b := append(packet[:0], nonce[:]...)
	b = appendUint64(b, sealID(s.Gate, b, uint64(s.ID)))
	appendUint64(b, gateTag(s.Gate, b))
	sealBody(packet[bodyAt:len(packet)-macLen], request, s.Key.RequestCipher(), &nonce)
	signPacket(packet, s)
	return packet
}

// sealBody fills body with the message and random padding, and encrypts it.
func sealBody(body, message []byte, key *[32]byte, nonce *Nonce) {
	n := copy(body, message)
	rand.Read(body[n:])
	stream(body, body, key, nonce)
}

// signPacket writes the MAC that ends a request packet.
func signPacket(packet []byte, s Sender) {
	end := len(packet) - macLen
	sum := requestMAC(s.Key, s.Server, packet[:end])
	copy(packet[end:], sum[:])
}

// requestMAC returns the MAC of a request packet, for everything before it.
func requestMAC(k keys.Key, server keys.ServerID, before []byte) [macLen]byte {
	return mac.SHA256(k.RequestMAC(), []byte(labelRequest), server[:], before)
}
