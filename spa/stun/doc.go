// Package stun takes a packet of package spa out of the STUN request with which a browser sends it, and makes the
// response that the browser accepts. A page cannot send datagrams, but WebRTC lets it choose the user name of the
// connectivity checks that the browser sends to an address (RFC 8445): the packet in base64.
//
// The parser takes Binding requests (RFC 8489) as the checks of browsers are: every attribute that RFC 8445 demands,
// MESSAGE-INTEGRITY after all others but FINGERPRINT, and no attribute that a receiver would have to understand and
// this one does not. Anything else is not a candidate.
package stun

// The sizes of a request, in bytes. The shortest has a packet of 168 bytes and a local user name of 4 characters, the
// longest leaves room for a longer one and for attributes that browsers add.
const (
	MinLen = 308
	MaxLen = 512
)

// The sizes of a packet in a request, in bytes: the longest has a user name of 251 characters. Browsers cut what is
// longer than 256, or 255.
const (
	MinPacket = 168
	MaxPacket = 188
)

const (
	headerLen      = 20
	attributeLen   = 4 // type and length of an attribute
	integrityLen   = 20
	fingerprintLen = 4

	request = 0x0001
	success = 0x0101
	failure = 0x0111
	cookie  = 0x2112a442

	userName         = 0x0006
	integrity        = 0x0008
	errorCode        = 0x0009
	xorMappedAddress = 0x0020
	priority         = 0x0024
	useCandidate     = 0x0025
	firstOptional    = 0x8000
	fingerprint      = 0x8028

	minLocal = 4 // characters of the sender's own user name (RFC 8445, section 5.3)

	fingerprintXOR = 0x5354554e
)
