package keys

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func testBytes(first byte) [Size]byte {
	var b [Size]byte
	for i := range b {
		b[i] = first + byte(i)*7
	}
	return b
}

// TestSubkeys checks the subkeys against another implementation of HKDF, which TestExpandAsRFC5869 checks against the
// RFC.
func TestSubkeys(t *testing.T) {
	master := testBytes(3)
	k, g := KeyFromBytes(master), GateKeyFromBytes(master)
	m0, m1 := g.Mask()
	t0, t1 := g.Tag()
	le := binary.LittleEndian
	for label, got := range map[string][]byte{
		"sallyport 1 request cipher": k.RequestCipher()[:],
		"sallyport 1 request mac":    k.RequestMAC()[:],
		"sallyport 1 receipt cipher": k.ReceiptCipher()[:],
		"sallyport 1 receipt mac":    k.ReceiptMAC()[:],
		"sallyport 1 nonce hedge":    k.Hedge()[:],
		"sallyport 1 gate mask":      le.AppendUint64(le.AppendUint64(nil, m0), m1),
		"sallyport 1 gate tag":       le.AppendUint64(le.AppendUint64(nil, t0), t1),
	} {
		want := lab.Value(hkdf.Key(sha256.New, master[:], nil, label, len(got)))(t)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", label, got, want)
		}
	}
}

// TestExpandAsRFC5869 is test case 3 of RFC 5869, appendix A (no salt, no info): the first 32 bytes of output. It uses
// the standard library, because ours does not accept a key of 22 bytes.
func TestExpandAsRFC5869(t *testing.T) {
	got := lab.Value(hkdf.Key(sha256.New, bytes.Repeat([]byte{0x0b}, 22), nil, "", 32))(t)
	const want = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
	if hex.EncodeToString(got) != want {
		t.Errorf("got %x, want %s", got, want)
	}
}

func TestParseKey(t *testing.T) {
	k := NewKey()
	back, err := parseKey(k.Reveal())
	if err != nil || !back.Equal(k) || back.Equal(NewKey()) {
		t.Fatalf("got %v, %v, want the key", back, err)
	}
	if _, err := ParseGateKey(NewGateKey().Reveal()); err != nil {
		t.Fatal(err)
	}
	text := "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	if _, err := parseKey(text); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty":          "",
		"short":          text[:40],
		"long":           text + text,
		"no padding":     strings.TrimSuffix(text, "="),
		"31 bytes":       base64.StdEncoding.EncodeToString([]byte(text[:31])),
		"33 bytes":       base64.StdEncoding.EncodeToString([]byte(text[:33])),
		"stray bits":     "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWZ=",
		"line break":     text[:10] + "\n" + text[10:43],
		"extra line end": text + "\n",
		"base64url":      "-" + text[1:],
		"hex":            strings.Repeat("ab", 22),
	} {
		k, err := parseKey(bad)
		if err == nil || !k.IsZero() {
			t.Errorf("%s: accepted", name)
			continue
		}
		if g, err := ParseGateKey(bad); err == nil || !g.IsZero() {
			t.Errorf("%s: accepted as a gate key", name)
		}
		if len(bad) > 10 && strings.Contains(err.Error(), bad[1:7]) {
			t.Errorf("%s: %q echoes its input", name, err)
		}
	}
}

func TestEqual(t *testing.T) {
	a, b := KeyFromBytes(testBytes(1)), KeyFromBytes(testBytes(1))
	if !a.Equal(b) || a.Equal(NewKey()) || a.Equal(Key{}) || (Key{}).Equal(a) || !(Key{}).Equal(Key{}) {
		t.Error("Key.Equal is wrong")
	}
	g, h := GateKeyFromBytes(testBytes(1)), GateKeyFromBytes(testBytes(1))
	if !g.Equal(h) || g.Equal(NewGateKey()) || g.Equal(GateKey{}) || (GateKey{}).Equal(g) ||
		!(GateKey{}).Equal(GateKey{}) {
		t.Error("GateKey.Equal is wrong")
	}
}

func TestZeroKeyHasNothing(t *testing.T) {
	var k Key
	if k.RequestCipher() != nil || k.RequestMAC() != nil || k.ReceiptCipher() != nil || k.ReceiptMAC() != nil ||
		k.Hedge() != nil {
		t.Error("the zero Key has subkeys")
	}
	if k.Reveal() != "" || (GateKey{}).Reveal() != "" {
		t.Error("a zero key reveals something")
	}
	if !k.IsZero() || NewKey().IsZero() || !(GateKey{}).IsZero() || NewGateKey().IsZero() {
		t.Error("IsZero is wrong")
	}
	if fmt.Sprint(k, GateKey{}) != "keys.Key(none) keys.GateKey(none)" {
		t.Errorf("zero keys print as %v", fmt.Sprint(k, GateKey{}))
	}
}

// A stranger's struct, with fields whose methods fmt may or may not call.
type holder struct {
	Public  Key
	private Key
	Gate    GateKey
	gate    GateKey
	Pointer *Key
	List    []Key
	Map     map[string]Key
	Array   [1]GateKey
	Any     any
	Client  *Client
}

func holding(k Key, g GateKey) holder {
	return holder{
		Public: k, private: k, Gate: g, gate: g, Pointer: &k, List: []Key{k}, Map: map[string]Key{"a": k},
		Array: [1]GateKey{g}, Any: k,
		Client: &Client{Name: "alice", Key: k, Previous: &Previous{Key: k}},
	}
}

// leaks looks for four bytes of each secret, in every form that printing can produce.
func leaks(t *testing.T, what, out string, secrets ...[]byte) {
	t.Helper()
	for _, secret := range secrets {
		for _, spelling := range spellings(secret) {
			if strings.Contains(out, spelling) {
				t.Fatalf("%s leaks: %q", what, out)
			}
		}
	}
}

func spellings(secret []byte) []string {
	text := base64.StdEncoding.EncodeToString(secret)
	list := []string{text[:12], strings.NewReplacer("+", "-", "/", "_").Replace(text[:12])}
	for _, four := range [][]byte{secret[:4], secret[12:16]} {
		decimal := strings.Trim(fmt.Sprint(four), "[]")
		list = append(list, string(four), decimal, strings.ReplaceAll(decimal, " ", ","))
		for _, format := range []string{"%x", "%X", "% x", "% X", "%q", "%#v", "%o", "%b"} {
			list = append(list, strings.Trim(fmt.Sprintf(format, four), `"[]{}byte`))
		}
	}
	return list
}

func secretsOf(k Key, g GateKey) [][]byte {
	return [][]byte{
		k.bytes(), k.RequestCipher()[:], k.RequestMAC()[:], k.ReceiptCipher()[:], k.ReceiptMAC()[:], k.Hedge()[:],
		g.bytes(), (*g.m).mask[:], (*g.m).tag[:],
	}
}

func TestFormatDoesNotLeak(t *testing.T) {
	k, g := KeyFromBytes(testBytes(0x91)), GateKeyFromBytes(testBytes(0xa2))
	h := holding(k, g)
	secrets := secretsOf(k, g)
	for _, flags := range []string{"", "+", "#", " ", "# ", "80"} {
		for verb := byte(' '); verb < 0x7f; verb++ {
			format := "%" + flags + string(verb)
			for _, v := range []any{k, g, &k, &g, h, &h, []holder{h}, map[string]*holder{"x": &h}, any(h), h.Client, [1]any{k}} {
				leaks(t, fmt.Sprintf("%s of %T", format, v), fmt.Sprintf(format, v), secrets...)
			}
		}
	}
}

func TestFormatSaysSecret(t *testing.T) {
	k, g := NewKey(), NewGateKey()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%e", "%t", "%U"} {
		if got := fmt.Sprintf(verb+verb, k, g); got != "keys.Key(secret)keys.GateKey(secret)" {
			t.Errorf("%s: got %s", verb, got)
		}
		if got := fmt.Sprintf(verb, struct{ K Key }{k}); !strings.Contains(got, "keys.Key(secret)") {
			t.Errorf("%s in a struct: got %s", verb, got)
		}
	}
}

func TestSlogDoesNotLeak(t *testing.T) {
	k, g := KeyFromBytes(testBytes(0x91)), GateKeyFromBytes(testBytes(0xa2))
	h := holding(k, g)
	var out bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		out.Reset()
		slog.New(handler).Info("m", "key", k, "gate", g)
		if got := out.String(); !strings.Contains(got, "keys.Key(secret)") || !strings.Contains(got, "keys.GateKey(secret)") {
			t.Errorf("%T: got %s", handler, got)
		}
		slog.New(handler).Info("m", "key", &k, "holder", h, "pointer", &h, "client", h.Client, "list",
			[]Key{k}, slog.Group("g", "k", k))
		leaks(t, fmt.Sprintf("%T", handler), out.String(), secretsOf(k, g)...)
	}
}

func TestEncodersRefuse(t *testing.T) {
	k, g := KeyFromBytes(testBytes(0x91)), GateKeyFromBytes(testBytes(0xa2))
	for _, v := range []any{k, g, &k, &g, holding(k, g), map[string]Key{"a": k}, []GateKey{g}, &Client{Key: k}} {
		out, err := json.Marshal(v)
		if err == nil {
			t.Errorf("json of %T: got %s, want an error", v, out)
		}
		leaks(t, "json", string(out)+fmt.Sprint(err), secretsOf(k, g)...)
	}
	if out, err := xml.Marshal(k); err == nil {
		t.Errorf("xml: got %s, want an error", out)
	}
	if out, err := xml.Marshal(g); err == nil {
		t.Errorf("xml: got %s, want an error", out)
	}
}

func TestNewKeysDiffer(t *testing.T) {
	id, server := NewID(), NewServerID()
	if NewKey().Equal(NewKey()) || NewGateKey().Equal(NewGateKey()) || id == NewID() || server == NewServerID() {
		t.Error("two new ones are equal")
	}
}

func TestIDs(t *testing.T) {
	if got := ID(0xab).String(); got != "00000000000000ab" {
		t.Errorf("got %s", got)
	}
	id, server := NewID(), NewServerID()
	if back, err := ParseID(id.String()); err != nil || back != id {
		t.Errorf("got %v, %v, want %v", back, err, id)
	}
	if back, err := ParseServerID(server.String()); err != nil || back != server {
		t.Errorf("got %v, %v, want %v", back, err, server)
	}
	for _, s := range []string{"", "0", strings.Repeat("0", 16), strings.Repeat("A", 16), "+" + strings.Repeat("1", 15),
		"0x" + strings.Repeat("1", 14), strings.Repeat("1", 17), strings.Repeat("1", 15) + "g",
		"1_1" + strings.Repeat("1", 13)} {
		if id, err := ParseID(s); err == nil || id != 0 {
			t.Errorf("%q: accepted as an id", s)
		}
		if id, err := ParseServerID(s + s); err == nil || id != (ServerID{}) {
			t.Errorf("%q: accepted as a server id", s+s)
		}
	}
	if _, err := ParseID("c2VjcmV0c2VjcmV0"); err == nil || strings.Contains(err.Error(), "c2Vj") {
		t.Errorf("got %v: want an error that does not echo", err)
	}
}
