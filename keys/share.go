package keys

import (
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
)

const labelShare = "sallyport 1 share"

// A ShareKey is what the gateways that share an address have in common, and nobody else: they seal with it what they
// tell each other through a store. It prints as keys.ShareKey(secret) and cannot be compared with ==: use Equal.
type ShareKey struct {
	_ [0]func()
	m **[Size]byte // behind two pointers: see material
}

// ShareKeyAt returns the share key of one of a fleet's servers. seed is the secret with which the office signs.
func ShareKeyAt(seed *[Size]byte, server ServerID) ShareKey {
	e := extract(seed)
	return ShareKeyFromBytes(e.expand(labelShare, server[:]...))
}

// ShareKeyFromBytes returns the share key with these bytes.
func ShareKeyFromBytes(b [Size]byte) ShareKey {
	m := &b
	return ShareKey{m: &m}
}

// ParseShareKey parses what Reveal returns. Its error reports lengths, never contents.
func ParseShareKey(s string) (ShareKey, error) {
	b, err := parseSecret(s)
	if err != nil {
		return ShareKey{}, err
	}
	return ShareKeyFromBytes(b), nil
}

// IsZero reports whether k is the zero ShareKey.
func (k ShareKey) IsZero() bool { return k.m == nil }

// Equal compares in constant time. Two zero keys are equal.
func (k ShareKey) Equal(other ShareKey) bool {
	if k.m == nil || other.m == nil {
		return k.m == other.m
	}
	return subtle.ConstantTimeCompare((*k.m)[:], (*other.m)[:]) == 1
}

// Bytes returns the key; nil of the zero ShareKey. Callers must not modify it.
func (k ShareKey) Bytes() *[Size]byte {
	if k.m == nil {
		return nil
	}
	return *k.m
}

// Reveal returns the key in base64. It is for bundles only.
func (k ShareKey) Reveal() string {
	if k.m == nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString((*k.m)[:])
}

// Format prints keys.ShareKey(secret) for every verb.
func (k ShareKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.redacted()) }

// LogValue is keys.ShareKey(secret).
func (k ShareKey) LogValue() slog.Value { return slog.StringValue(k.redacted()) }

// MarshalText refuses: encoders must not write a key by accident.
func (k ShareKey) MarshalText() ([]byte, error) { return nil, errSecretText }

func (k ShareKey) redacted() string {
	if k.m == nil {
		return "keys.ShareKey(none)"
	}
	return "keys.ShareKey(secret)"
}
