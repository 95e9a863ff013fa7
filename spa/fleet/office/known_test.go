package office

import (
	"crypto/ed25519"
	"errors"
	"path/filepath"
	"testing"

	"sallyport/spa/lab"
)

// TestKeyIsExpected: a key that replaces another is remembered before the vault has it, so that a rotation that is
// killed can be continued. If it cannot be remembered, nothing changes.
func TestKeyIsExpected(t *testing.T) {
	h := newHouse(t)
	identity := filepath.Join(t.TempDir(), "identity")
	known := lab.Value(ReadKnown(identity))(t)
	check := func() error {
		o := lab.Value(Load(h.dir))(t)
		return lab.Value(ReadKnown(identity))(t).Check(o, lab.Value(o.Unlock(h.me))(t))
	}
	rotate := func(expect func(*Office, ed25519.PublicKey) error) error {
		return h.act(func(o *Office, v *Vault, _ string) error {
			return o.RotateKey(v, func(key ed25519.PublicKey) error { return expect(o, key) })
		}, "")
	}
	o := lab.Value(Load(h.dir))(t)
	lab.Must(t, known.Trust(o.Fleet, o.Key))
	before := snapshot(t, h.dir)
	full := errors.New("no space")
	if err := rotate(func(*Office, ed25519.PublicKey) error { return full }); !errors.Is(err, full) ||
		snapshot(t, h.dir) != before {
		t.Errorf("the key could not be remembered: %v, or the office has changed", err)
	}
	lab.Must(t, rotate(func(o *Office, key ed25519.PublicKey) error { return known.Expect(o.Fleet, key) }))
	if err := check(); err != nil {
		t.Errorf("killed after the vault has the new key: %v", err)
	}
	lab.Must(t, known.Trust(o.Fleet, o.Key))
	if err := check(); !errors.Is(err, ErrOtherKey) {
		t.Errorf("with the old key only: %v, want %v", err, ErrOtherKey)
	}
}
