// Package spa defines the single packet that asks a server to open a port, and the receipt that answers it. It is
// pure: no clock, no network, no files. Bytes, keys and a given time go in; a request, or the reason against it,
// comes out. PROTOCOL.md beside it is the specification, and testdata/vectors has an example of every verdict.
//
// # The packet
//
// A packet is the payload of one UDP datagram, 168 to 256 bytes. Its length is uniform in that range whatever it
// contains, and each byte is indistinguishable from random without the keys. Numbers are big-endian.
//
//	offset  size    field      meaning
//	0       24      nonce      HMAC-SHA256(nonce hedge key, 32 random bytes || request)[:24]
//	24      8       sealed id  the key's id XOR SipHash-2-4(gate mask key, nonce)
//	32      8       gate tag   SipHash-2-4(gate tag key, nonce || sealed id)
//	40      96-184  body       XChaCha20(request cipher key, nonce): request || random padding
//	-32     32      mac        HMAC-SHA256(request MAC key, "sallyport 1 request" || server id || all before)
//
// The request in the body is at most 96 bytes, and has one encoding:
//
//	0       1       version    1
//	1       1       type       1 open, 2 close
//	2       1       flags      0
//	3       1       count      of services, 1 to 8
//	4       16      id         the same in all packets of one command
//	20      8       time       of sealing, nanoseconds since 1970, signed
//	28      4       for        milliseconds wanted; 0 the service's own, and in a close
//	32      16      source     the client's address, IPv4 as ::ffff:a.b.c.d; 0 the one the server sees
//	48      0-48    services   a name as its length (1-32) and bytes; a port as 0x86 (TCP) or 0x91 (UDP)
//	                           and 2 bytes; none twice
//
// # The receipt
//
// A receipt has the length of the packet that it answers and no header:
//
//	0       24      nonce      HMAC-SHA256(nonce hedge key, 32 random bytes || request's nonce || receipt)[:24]
//	24      112-200 body       XChaCha20(receipt cipher key, nonce): receipt || random padding
//	-32     32      mac        HMAC-SHA256(receipt MAC key, "sallyport 1 receipt" || server id ||
//	                           request's nonce || all before)
//
// and in its body, at most 112 bytes:
//
//	0       1       version    1
//	1       1       status     1 granted, 2 closed, from 16 on the reason of a refusal
//	2       1       count      of services: those of the request; none in a refusal, and perhaps none in a close
//	3       8       time       of the server, nanoseconds since 1970, signed
//	11      16      source     the address that the server saw, or 0
//	27      5+5n    services   each: milliseconds that it stays open (4 bytes); n, with 0x80 added when it has
//	                           more ranges than told (1 byte); n ranges of protocol (1), low (2), high (2)
//
// [OpenReceipt] checks the receipt alone: the client must check whether its count is that of the request, and whether
// it answers an open as one.
//
// # The order of checks
//
// [Open] refuses a packet with the first of these that does not hold. The first four look at bytes that anyone may
// have sent: they cost little, do not allocate, and cost the same with one client or a million.
//
//  1. the length is 168 to 256                              ErrLength
//  2. the tag is of one of the server's gate keys           ErrGate
//  3. a client has the id                                   ErrClient
//  4. the mac is of that client's key, for this server      ErrMAC
//  5. the client was not revoked, nor the key retired       ErrRevoked, ErrRetired
//  6. the request is well-formed                            ErrMalformed
//  7. its time is within the window of now, on either side  ErrStale
//
// # What is not protected
//
// Open has no memory: a copy of a packet opens like the packet, until it is stale. The caller of Open spends the
// nonce (package spa/replay).
//
// The source address is authenticated only if the request states one. Otherwise an attacker who intercepts a packet
// and sends it from elsewhere is taken for the client.
//
// The gate key is shared by all clients of a server. It keeps out noise and hides the id from observers. Anyone who
// holds it can recognise knocks and their clients, and after seeing one packet can send its header with another body,
// as far as check 4.
//
// There is no forward secrecy: an attacker who records packets and later gets the key can read the requests. Everyone
// on the path can see that datagrams of 168 to 256 bytes go to this address, when, and whether an answer comes.
package spa

//go:generate env SPA_WRITE_VECTORS=1 go test -count=1 -run VectorsAreGenerated$ .
