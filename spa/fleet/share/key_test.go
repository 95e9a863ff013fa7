package share_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
)

var key = share.DeriveKey([]byte("seed"), keys.ServerID{1})

// TestKeyOfEachSite: members of one site have one key, and others another.
func TestKeyOfEachSite(t *testing.T) {
	if !key.Equal(share.DeriveKey([]byte("seed"), keys.ServerID{1})) {
		t.Error("two members of a site have two keys")
	}
	if key.Equal(share.DeriveKey([]byte("seed"), keys.ServerID{2})) || key.Equal(share.DeriveKey([]byte("mud"),
		keys.ServerID{1})) || key.Equal(share.Key{}) || !(share.Key{}).Equal(share.Key{}) {
		t.Error("different keys are equal")
	}
	again := lab.Value(share.ParseKey(key.Reveal()))(t)
	if !again.Equal(key) || again.IsZero() || again.NonceName(1, [24]byte{2}) != key.NonceName(1, [24]byte{2}) {
		t.Error("a key read back is another")
	}
	// Every release must derive the same: this is what the first one derived.
	if got, want := key.Reveal(), "E1U/LUQzFiasgfhfx3MQtd5jZDMNYzigoubewNbAOHs="; got != want {
		t.Errorf("derived %s, want %s", got, want)
	}
}

func TestParseKey(t *testing.T) {
	text := key.Reveal()
	for _, bad := range []string{"", text[:43], text + "\n", text + "=", "\n" + text, strings.Repeat("A", 42) + "B=",
		strings.Repeat("?", 44)} {
		if k, err := share.ParseKey(bad); err == nil || !k.IsZero() {
			t.Errorf("%q is taken for a key", bad)
		}
	}
}

// TestKeyIsNotPrinted: no verb, log or encoder prints a share key.
func TestKeyIsNotPrinted(t *testing.T) {
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", key)
	text := fmt.Sprintf("%v %+v %#v %d %x %s %q %v", key, key, key, key, key, key, key, struct{ k share.Key }{key}) +
		log.String()
	if _, err := json.Marshal(key); err == nil || strings.Contains(text, key.Reveal()) ||
		strings.Count(text, "share.Key(secret)") != 8 {
		t.Errorf("printed: %s", text)
	}
	if got := fmt.Sprint(share.Key{}); got != "share.Key(none)" {
		t.Errorf("no key prints as %s", got)
	}
}

// TestNames: what is spent has its own name, which does not show what it is.
func TestNames(t *testing.T) {
	names := []share.Name{
		key.NonceName(1, [24]byte{1}), key.NonceName(1, [24]byte{2}), key.NonceName(2, [24]byte{1}),
		key.RequestName(1, [16]byte{1}), key.RequestName(1, [16]byte{2}), key.RequestName(2, [16]byte{1}),
		share.DeriveKey([]byte("seed"), keys.ServerID{2}).NonceName(1, [24]byte{1}),
	}
	for i, n := range names {
		if slices.Contains(names[:i], n) || n == (share.Name{}) {
			t.Errorf("name %d is not its own: %s", i, n)
		}
	}
}

// TestSealed: a value opens at its place and with its key, and only unchanged.
func TestSealed(t *testing.T) {
	sealed := key.Seal("a/b", []byte("value"))
	if text, err := key.Open("a/b", sealed); err != nil || string(text) != "value" {
		t.Fatalf("got %q, %v", text, err)
	}
	if bytes.Equal(sealed, key.Seal("a/b", []byte("value"))) {
		t.Error("the same value is sealed twice in the same way")
	}
	refused := func(what, place string, k share.Key, sealed []byte) {
		if text, err := k.Open(place, sealed); !errors.Is(err, share.ErrSealed) || text != nil {
			t.Errorf("%s: got %q, %v", what, text, err)
		}
	}
	refused("another place", "a/c", key, sealed)
	refused("another key", "a/b", share.DeriveKey([]byte("seed"), keys.ServerID{2}), sealed)
	for i := range sealed {
		changed := slices.Clone(sealed)
		changed[i] ^= 1
		refused("a changed byte", "a/b", key, changed)
		refused("cut off", "a/b", key, sealed[:i])
	}
	refused("longer", "a/b", key, append(slices.Clone(sealed), 0))
}
