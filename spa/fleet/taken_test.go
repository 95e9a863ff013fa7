package fleet

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestTaken: only a gateway that could open a bundle can say that it has taken it over, and its line has one form.
func TestTaken(t *testing.T) {
	h := newHouse(t)
	seal := func(serial int64) *Bundle {
		return lab.Value(h.seal.Seal("web7", h.web.Recipient(), serial, time.Unix(1.9e9, 0), contents(1)))(t)
	}
	b, other := seal(7), seal(7)
	c := lab.Value(h.take(b.Bytes()))(t)
	since := time.Date(2026, 11, 30, 10, 0, 0, 5, time.FixedZone("", 3600))
	line := c.Taken.Sign(b.Head, since).String()
	got := lab.Value(ParseTaken([]byte(line + "\n")))(t)
	if !got.By(b.Taken()) || got.String() != line || got.Fleet != b.Fleet || got.Gateway != "web7" || got.Serial != 7 ||
		got.Since.Format(time.RFC3339) != "2026-11-30T09:00:00Z" || len(line) >= MaxTaken {
		t.Errorf("got %+v for %s", got, line)
	}
	if got.By(other.Taken()) || got.By(nil) || got.By(h.office.Key) {
		t.Error("another bundle's key, or none, verifies it")
	}
	if lab.Value(Parse(b.Bytes()))(t).Taken() != nil {
		t.Error("everyone who has a bundle has a key for it")
	}
	for i := range line {
		for _, changed := range []string{line[:i], line[:i] + " " + line[i:], line[:i] + string(line[i]^1) + line[i+1:]} {
			if got, err := ParseTaken([]byte(changed)); err == nil && got.By(b.Taken()) {
				t.Errorf("accepts %s", changed)
			}
		}
	}
	for from, to := range map[string]string{" 7 ": " 07 ", " web7 ": " ../web7 ", "Z ": "+00:00 ", " 1 ": " 2 ", "7 2": "0 2"} {
		if _, err := ParseTaken([]byte(strings.Replace(line, from, to, 1))); err == nil {
			t.Errorf("accepts %q for %q", to, from)
		}
	}
	if _, err := ParseTaken([]byte(line + "\n" + strings.Repeat("x", MaxTaken))); err == nil {
		t.Error("accepts more than a line")
	}
}

// TestTakenKeyIsSecret: nothing prints the key.
func TestTakenKeyIsSecret(t *testing.T) {
	h := newHouse(t)
	k := lab.Value(h.take(h.bundle(t, 7, contents(1))))(t).Taken
	seed := (*k.key).Seed()
	for _, verb := range []string{"%v", "%+v", "%#v", "%d", "%x", "%s"} {
		text := fmt.Sprintf(verb, k)
		if text != "fleet.TakenKey(secret)" || strings.Contains(text, base64.StdEncoding.EncodeToString(seed)) {
			t.Errorf("%s prints %s", verb, text)
		}
	}
	if text, err := k.MarshalText(); err == nil || bytes.Contains(text, seed) || k.LogValue().String() != fmt.Sprint(k) {
		t.Error("the key can be written")
	}
}

func FuzzParseTaken(f *testing.F) {
	h := newHouse(f)
	b := lab.Value(h.seal.Seal("web7", h.web.Recipient(), 7, time.Unix(1.9e9, 0), contents(1)))(f)
	f.Add([]byte(lab.Value(h.take(b.Bytes()))(f).Taken.Sign(b.Head, time.Unix(1.9e9, 0)).String()))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := ParseTaken(text)
		if err == nil && got.String() != strings.TrimSuffix(string(text), "\n") {
			t.Error("a line has two forms")
		}
	})
}
