package share

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/crypto/chacha20poly1305"

	"sallyport/keys"
)

// The labels with which the share key and its subkeys are derived.
const (
	labelKey    = "sallyport 1 share"
	labelNames  = "sallyport 1 share names"
	labelValues = "sallyport 1 share values"
)

// KeySize is the number of bytes of a share key.
const KeySize = 32

// ErrSealed means that a value was not sealed for this place under this key.
var ErrSealed = errors.New("share: does not open with the share key")

var errSecret = errors.New("share: a key must not be written by accident")

// A Key is what the members of a site share, and neither their agents nor the store have. The zero Key is not a key. It
// prints as share.Key(secret) and cannot be compared with ==.
type Key struct {
	_ [0]func()
	m **material
}

type material struct {
	master [KeySize]byte
	names  []byte // HMAC-SHA256
	values cipher.AEAD
}

// DeriveKey returns the share key of a site. Seed is the office's secret, server the site's server id.
func DeriveKey(seed []byte, server keys.ServerID) Key {
	var b [KeySize]byte
	copy(b[:], expand(seed, labelKey+string(server[:])))
	return keyFromBytes(b)
}

// ParseKey parses what Reveal returns. Its error quotes nothing.
func ParseKey(text string) (Key, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != KeySize || base64.StdEncoding.EncodeToString(b) != text {
		return Key{}, fmt.Errorf("a share key is %d bytes in base64", KeySize)
	}
	return keyFromBytes([KeySize]byte(b)), nil
}

func keyFromBytes(b [KeySize]byte) Key {
	aead, err := chacha20poly1305.NewX(expand(b[:], labelValues))
	if err != nil {
		panic(err) // only for a key of another size
	}
	m := &material{master: b, names: expand(b[:], labelNames), values: aead}
	return Key{m: &m}
}

func expand(secret []byte, info string) []byte {
	b, err := hkdf.Key(sha256.New, secret, nil, info, KeySize)
	if err != nil {
		panic(err) // only for more than 255 blocks
	}
	return b
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

// Reveal returns the key in base64. It is for bundles only.
func (k Key) Reveal() string {
	if k.m == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString((*k.m).master[:])
}

// NonceName returns the name of a packet's nonce in the store. The zero Key has none: it panics.
func (k Key) NonceName(client keys.ID, nonce [24]byte) Name { return k.name("n", client, nonce[:]) }

// RequestName returns the name of a client's request id in the store. The zero Key has none: it panics.
func (k Key) RequestName(client keys.ID, request [16]byte) Name {
	return k.name("i", client, request[:])
}

func (k Key) name(kind string, client keys.ID, data []byte) Name {
	h := hmac.New(sha256.New, (*k.m).names)
	fmt.Fprintf(h, "%s\x00%s\x00%s", kind, client, data) // the id's text has one length
	return Name(h.Sum(nil))
}

// Seal seals a value for its place in the store, which is the whole key there. The zero Key panics.
func (k Key) Seal(place string, value []byte) []byte {
	sealed := make([]byte, chacha20poly1305.NonceSizeX, chacha20poly1305.NonceSizeX+len(value)+chacha20poly1305.Overhead)
	rand.Read(sealed)
	return (*k.m).values.Seal(sealed, sealed, value, []byte(place))
}

// Open opens what Seal returned for this place. Its error is ErrSealed.
func (k Key) Open(place string, sealed []byte) ([]byte, error) {
	if len(sealed) < chacha20poly1305.NonceSizeX {
		return nil, ErrSealed
	}
	nonce, rest := sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:]
	value, err := (*k.m).values.Open(nil, nonce, rest, []byte(place))
	if err != nil {
		return nil, ErrSealed
	}
	return value, nil
}

// Format prints share.Key(secret) for every verb.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, k.redacted()) }

// LogValue is share.Key(secret).
func (k Key) LogValue() slog.Value { return slog.StringValue(k.redacted()) }

// MarshalText refuses: encoders must not write a key by accident.
func (k Key) MarshalText() ([]byte, error) { return nil, errSecret }

func (k Key) redacted() string {
	if k.m == nil {
		return "share.Key(none)"
	}
	return "share.Key(secret)"
}
