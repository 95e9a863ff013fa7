package keys

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
)

// TestShareKey: the key is HKDF's of the office's secret at a server id, and has one text.
func TestShareKey(t *testing.T) {
	seed, server := testBytes(0x91), NewServerID()
	k := ShareKeyAt(&seed, server)
	want, err := hkdf.Key(sha256.New, seed[:], nil, "sallyport 1 share"+string(server[:]), Size)
	if err != nil || !bytes.Equal(k.Bytes()[:], want) {
		t.Errorf("the key is not HKDF's: %v", err)
	}
	if k.Equal(ShareKeyAt(&seed, NewServerID())) || k.Equal(ShareKey{}) || (ShareKey{}).Equal(k) ||
		!(ShareKey{}).Equal(ShareKey{}) {
		t.Error("Equal is wrong")
	}
	read, err := ParseShareKey(k.Reveal())
	if err != nil || !read.Equal(k) || read.IsZero() {
		t.Errorf("it does not read what it reveals: %v", err)
	}
	for _, bad := range []string{"", k.Reveal() + "\n", k.Reveal()[1:]} {
		if got, err := ParseShareKey(bad); err == nil || !got.IsZero() {
			t.Errorf("accepts a key of %d characters", len(bad))
		}
	}
	if none := (ShareKey{}); none.Reveal() != "" || none.Bytes() != nil || !none.IsZero() ||
		fmt.Sprint(none) != "keys.ShareKey(none)" {
		t.Error("no key is one")
	}
}

// TestShareKeyDoesNotLeak: no verb, log or encoder prints it.
func TestShareKeyDoesNotLeak(t *testing.T) {
	k := ShareKeyFromBytes(testBytes(0x91))
	held := struct{ share ShareKey }{k}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if got := fmt.Sprintf(verb, k); got != "keys.ShareKey(secret)" {
			t.Errorf("%s: got %s", verb, got)
		}
		for _, v := range []any{&k, held, &held, []ShareKey{k}} {
			leaks(t, fmt.Sprintf("%s of %T", verb, v), fmt.Sprintf(verb, v), k.Bytes()[:])
		}
	}
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "key", k, "pointer", &k, "held", held)
	leaks(t, "slog", out.String(), k.Bytes()[:])
	if _, err := json.Marshal(k); err == nil {
		t.Error("it is encoded")
	}
}
