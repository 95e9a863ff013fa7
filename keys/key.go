package keys

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"sallyport/keys/mac"
)

// Size is the length of a client key and of a gate key in bytes.
const Size = 32

// The HKDF labels of the specification: one for each use of a key, so that no two uses
// ever see the same bytes.
const (
	labelRequestCipher = "sallyport 1 request cipher"
	labelRequestMAC    = "sallyport 1 request mac"
	labelReceiptCipher = "sallyport 1 receipt cipher"
	labelReceiptMAC    = "sallyport 1 receipt mac"
	labelHedge         = "sallyport 1 nonce hedge"
	labelGateMask      = "sallyport 1 gate mask"
	labelGateTag       = "sallyport 1 gate tag"
)

var errSecretText = errors.New("a key is never marshalled as text: Reveal is for files and tokens")

// A Key is shared by a client and the server: a 32-byte master key and the subkeys that HKDF-SHA256 derives from it.
// The zero Key is not a key; its subkeys are nil.
//
// A Key prints as keys.Key(secret) under every verb of fmt, also inside other values,
// and cannot be compared with ==: use Equal.
type Key struct {
	_ [0]func()
	m **material
}

// material is behind two pointers. In an unexported field of another package's struct, fmt does not call Format but
// prints what it sees, which is then an address. One pointer is not enough: for "%s" fmt follows it.
//
// Only the keys for opening a packet are kept. The others are made when they are used: a server has many keys, and
// seals few receipts.
type material struct{ requestMAC, requestCipher, master [Size]byte }

// NewKey returns a random key.
func NewKey() Key {
	var b [Size]byte
	rand.Read(b[:])
	return KeyFromBytes(b)
}

// KeyFromBytes returns the key with these bytes as its master key.
func KeyFromBytes(b [Size]byte) Key {
	e := extract(&b)
	m := &material{master: b, requestMAC: e.expand(labelRequestMAC), requestCipher: e.expand(labelRequestCipher)}
	return Key{m: &m}
}

// parseKey parses what Reveal returns: standard base64, with padding, of exactly 32 bytes. Its error reports lengths,
// never contents.
func parseKey(s string) (Key, error) {
	b, err := parseSecret(s)
	if err != nil {
		return Key{}, err
	}
	return KeyFromBytes(b), nil
}

// IsZero reports whether k is the zero Key.
func (k Key) IsZero() bool { return k.m == nil }

// Equal compares in constant time. Two zero keys are equal.
func (k Key) Equal(other Key) bool {
	if k.m == nil || other.m == nil {
		return k.m == other.m
	}
	return subtle.ConstantTimeCompare((*k.m).master[:], (*other.m).master[:]) == 1
}

// Reveal returns the master key in base64. It is for files and tokens only.
func (k Key) Reveal() string {
	if k.m == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString((*k.m).master[:])
}

// RequestCipher is the XChaCha20 key of requests. Callers must not modify it.
func (k Key) RequestCipher() *[Size]byte {
	if k.m == nil {
		return nil
	}
	return &(*k.m).requestCipher
}

// RequestMAC is the HMAC-SHA256 key of requests. Callers must not modify it.
func (k Key) RequestMAC() *[Size]byte {
	if k.m == nil {
		return nil
	}
	return &(*k.m).requestMAC
}

// ReceiptCipher is the XChaCha20 key of receipts.
func (k Key) ReceiptCipher() *[Size]byte {
	return k.derive(labelReceiptCipher)
}

// ReceiptMAC is the HMAC-SHA256 key of receipts.
func (k Key) ReceiptMAC() *[Size]byte {
	return k.derive(labelReceiptMAC)
}

// Hedge is the HMAC-SHA256 key that makes nonces of randomness and the message, so that
// a stuck generator does not repeat a key stream.
func (k Key) Hedge() *[Size]byte {
	return k.derive(labelHedge)
}

// derive makes a subkey that is not kept; nil of the zero Key.
func (k Key) derive(label string) *[Size]byte {
	if k.m == nil {
		return nil
	}
	e := extract(&(*k.m).master)
	subkey := e.expand(label)
	return &subkey
}

// Format prints keys.Key(secret) for every verb.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, k.redacted()) }

// LogValue is keys.Key(secret).
func (k Key) LogValue() slog.Value { return slog.StringValue(k.redacted()) }

// MarshalText refuses: encoders must not write a key by accident.
func (k Key) MarshalText() ([]byte, error) { return nil, errSecretText }

func (k Key) redacted() string {
	if k.m == nil {
		return "keys.Key(none)"
	}
	return "keys.Key(secret)"
}

// A GateKey is shared by a server and all its clients. It filters noise and hides the client id, nothing more. The zero
// GateKey is not a key. It prints and compares as Key does.
type GateKey struct {
	_ [0]func()
	m **gateMaterial
}

type gateMaterial struct {
	master [Size]byte
	mask   [16]byte
	tag    [16]byte
}

// NewGateKey returns a random gate key.
func NewGateKey() GateKey {
	var b [Size]byte
	rand.Read(b[:])
	return GateKeyFromBytes(b)
}

// GateKeyFromBytes returns the gate key with these bytes as its master key.
func GateKeyFromBytes(b [Size]byte) GateKey {
	m := &gateMaterial{master: b}
	e := extract(&b)
	mask, tag := e.expand(labelGateMask), e.expand(labelGateTag)
	copy(m.mask[:], mask[:])
	copy(m.tag[:], tag[:])
	return GateKey{m: &m}
}

// ParseGateKey parses what Reveal returns. Its error reports lengths, never contents.
func ParseGateKey(s string) (GateKey, error) {
	b, err := parseSecret(s)
	if err != nil {
		return GateKey{}, err
	}
	return GateKeyFromBytes(b), nil
}

// IsZero reports whether g is the zero GateKey.
func (g GateKey) IsZero() bool { return g.m == nil }

// Equal compares in constant time. Two zero keys are equal.
func (g GateKey) Equal(other GateKey) bool {
	if g.m == nil || other.m == nil {
		return g.m == other.m
	}
	return subtle.ConstantTimeCompare((*g.m).master[:], (*other.m).master[:]) == 1
}

// Reveal returns the gate key in base64. It is for files and tokens only.
func (g GateKey) Reveal() string {
	if g.m == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString((*g.m).master[:])
}

// Fingerprint identifies a gate key and reveals nothing about it: 8 bytes of a SHA-256, in hex.
func (g GateKey) Fingerprint() string {
	sum := sha256.Sum256([]byte("sallyport gate key fingerprint\x00" + g.Reveal()))
	return hex.EncodeToString(sum[:8])
}

// Mask is the SipHash key that hides the client id, as its two little-endian halves.
// The zero GateKey has none: Mask panics.
func (g GateKey) Mask() (k0, k1 uint64) { return halves(&(*g.m).mask) }

// Tag is the SipHash key of the gate tag, as its two little-endian halves.
// The zero GateKey has none: Tag panics.
func (g GateKey) Tag() (k0, k1 uint64) { return halves(&(*g.m).tag) }

// Format prints keys.GateKey(secret) for every verb.
func (g GateKey) Format(f fmt.State, _ rune) { io.WriteString(f, g.redacted()) }

// LogValue is keys.GateKey(secret).
func (g GateKey) LogValue() slog.Value { return slog.StringValue(g.redacted()) }

// MarshalText refuses: encoders must not write a key by accident.
func (g GateKey) MarshalText() ([]byte, error) { return nil, errSecretText }

func (g GateKey) redacted() string {
	if g.m == nil {
		return "keys.GateKey(none)"
	}
	return "keys.GateKey(secret)"
}

func halves(b *[16]byte) (k0, k1 uint64) {
	return binary.LittleEndian.Uint64(b[:8]), binary.LittleEndian.Uint64(b[8:])
}

// An extracted key is HKDF-Extract's output (RFC 5869, SHA-256, no salt), from which subkeys are made. It is computed
// here and not by crypto/hkdf, which allocates for each subkey and takes four times as long: a server makes two of each
// of its clients' keys at its start, and two for each receipt.
type extracted [Size]byte

func extract(master *[Size]byte) extracted { return mac.SHA256(new([Size]byte), master[:]) }

// expand returns the first block of HKDF-Expand, for label and context.
func (e *extracted) expand(label string, context ...byte) [Size]byte {
	return mac.SHA256((*[Size]byte)(e), []byte(label), context, []byte{1})
}

// parseSecret accepts one text for each key. Decoding tolerates line breaks and stray bits at the end, so the text is
// compared with the encoding of the result.
func parseSecret(s string) ([Size]byte, error) {
	var key [Size]byte
	if want := base64.StdEncoding.EncodedLen(Size); len(s) != want {
		return key, fmt.Errorf("a key is %d bytes in base64, %d characters; this has %d", Size, want, len(s))
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != Size {
		return key, fmt.Errorf("a key is %d bytes in standard base64; this is not", Size)
	}
	copy(key[:], b)
	return key, nil
}

func (k Key) bytes() []byte {
	if k.m == nil {
		return nil
	}
	return (*k.m).master[:]
}

func (g GateKey) bytes() []byte {
	if g.m == nil {
		return nil
	}
	return (*g.m).master[:]
}
