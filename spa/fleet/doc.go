// Package fleet defines the bundles in which the office of a fleet tells each gateway who may knock there.
//
// A bundle is signed by the office and sealed to one gateway. Its head is readable:
//
//	sallyport fleet bundle 1
//	fleet 6a09e667f3bcc908b2fb1366ea957d3e
//	gateway web7
//	serial 42
//	issued 2026-11-30T09:00:00Z
//	size 20481
//	sha256 (64 hex digits: of what follows the empty line)
//	signature (base64: Ed25519, RFC 8032, of all lines above)
//
// and after an empty line there are size bytes in the format of age (C2SP.org/age) for the gateway's hybrid recipient.
// Encrypted is a sequence of entries, each a line with a name and a length in bytes, and those bytes:
//
//	site             the name of the gateway or of those that share its address: it makes the server id
//	gate.key         the fleet's gate keys at that server id, as in a gateway's gate.key
//	share.key        the key that the gateways of a site share, in base64; absent for a gateway alone
//	clients/NAME.toml  a client at that server id, as in a gateway's directory; sorted
//
// Each bundle has exactly one form; nothing may follow it. The place that hands a bundle out is trusted with nothing:
// it can withhold one, which shows in its age, and offer an older one, which its serial shows.
//
// In return, a gateway reports which bundle it has taken over, by a line that it signs: see Taken. Its key is Ed25519 with the
// seed HKDF-SHA256 (RFC 5869) of the age file's key, without salt, with the info "sallyport 1 taken", 32 bytes long.
package fleet

//go:generate env SPA_WRITE_VECTORS=1 go test -count=1 -run VectorsAreGenerated$ .
