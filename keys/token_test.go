package keys

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func TestToken(t *testing.T) {
	for _, change := range []func(*Profile){
		func(*Profile) {},
		func(p *Profile) { p.Receipts, p.Source = false, "" },
		func(p *Profile) { p.Services = map[string][]string{} },
		func(p *Profile) { p.Address = "[2001:db8::1]:62201" },
		func(p *Profile) { p.Address = strings.Repeat("a.", 124) + "aa" },
	} {
		p := testProfile()
		change(p)
		token := p.Token()
		if !strings.HasPrefix(token, "spa1") ||
			strings.Trim(token, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			t.Fatalf("%q is not one word", token)
		}
		for _, around := range []string{token, token + "\n", " \t" + token + "\r\n\r\n"} {
			back, err := ParseToken(around)
			if err != nil || !sameProfile(back, p) {
				t.Fatalf("got %+v, %v, want %+v", back, err, p)
			}
		}
	}
}

// TestChangedTokenIsRefused changes each character to every other one, drops each, doubles each, and breaks the line at
// each position.
func TestChangedTokenIsRefused(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/= \n\x00"
	token := testProfile().Token()
	refused := func(s string) {
		t.Helper()
		if p, err := ParseToken(s); !errors.Is(err, ErrToken) || p != nil || err.Error() != ErrToken.Error() {
			t.Fatalf("%q: got %v, %v, want ErrToken", s, p, err)
		}
	}
	for i := range len(token) {
		for _, c := range alphabet {
			if byte(c) != token[i] && (i > 0 && i < len(token)-1 || strings.TrimSpace(string(c)) != "") {
				refused(token[:i] + string(c) + token[i+1:])
			}
		}
		refused(token[:i])
		refused(token[:i] + token[i+1:])
		refused(token[:i] + token[i:i+1] + token[i:])
		if i > 0 {
			refused(token[:i] + "\n" + token[i:])
		}
	}
	refused(token[len(ordinary.prefix):])
	refused(token + "A")
	refused(token + token)
	refused(strings.ToUpper(token[:4]) + token[4:])
}

// sealToken makes a token with any body and the right checksum: nobody makes one by mistake in an editor, but a program
// with a bug can.
func sealToken(body []byte) string {
	sealed := append(body[:len(body):len(body)], ordinary.checksum(body)...)
	return ordinary.prefix + base64.RawURLEncoding.EncodeToString(sealed)
}

func TestTokenIsCanonical(t *testing.T) {
	p := testProfile()
	body := p.appendBinary(nil)
	_, err := ParseToken(sealToken(body))
	lab.Must(t, err)
	receipts := len(body)
	for i := range body { // the receipts byte is before the count of services
		if body[i] == 1 && body[i+1] == 2 && string(body[i+3:i+7]) == "mosh" {
			receipts = i
		}
	}
	swapped := string(body[:receipts+2]) + "\x03ssh\x01\x06tcp/22\x04mosh\x02\x0fudp/60000-60010\x06tcp/22"
	twice := string(body[:receipts+2]) + "\x03ssh\x01\x06tcp/22\x03ssh\x01\x06tcp/23"
	flag := append([]byte(nil), body...)
	flag[receipts] = 2
	for name, bad := range map[string][]byte{
		"a byte more": append(body[:len(body):len(body)], 0), "a byte less": body[:len(body)-1], "half": body[:receipts],
		"nothing":             nil,
		"services not sorted": []byte(swapped), "a service twice": []byte(twice), "receipts 2": flag,
	} {
		if p, err := ParseToken(sealToken(bad)); err == nil {
			t.Errorf("%s: accepted as %+v", name, p)
		}
	}
	for field, change := range badProfiles {
		p := testProfile()
		change(p)
		if field == "gate_key" || field == "key" {
			continue // it has no bytes to write
		}
		if _, err := ParseToken(sealToken(p.appendBinary(nil))); err == nil {
			t.Errorf("a token with a bad %s: accepted", field)
		}
	}
}
