package keys

import (
	"bytes"
	"strings"
	"testing"

	"sallyport/keys/strict"
	"sallyport/spa/lab"
)

func FuzzToken(f *testing.F) {
	p := testProfile()
	f.Add(p.appendBinary(nil))
	p.Services, p.Source, p.Address = nil, "", "[2001:db8::1]:443"
	f.Add(p.appendBinary(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		token := sealToken(body)
		p, err := ParseToken(token)
		if (p == nil) != (err != nil) {
			t.Fatalf("got %v and %v", p, err)
		}
		if err == nil && p.Token() != token {
			t.Errorf("got %s back, want %s", p.Token(), token)
		}
		if p, err := ParseToken(ordinary.prefix + string(body)); err == nil &&
			p.Token() != ordinary.prefix+strings.TrimSpace(string(body)) {
			t.Errorf("%q is not printed back", body)
		}
	})
}

func FuzzClientFile(f *testing.F) {
	f.Add([]byte(clientText))
	f.Add(fullClient().text())
	f.Add([]byte("version = 1\nprevious.id = 1\n[previous]\nallow = [[{}]]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var raw rawClient
		d, err := strict.Decode("f", text, &raw)
		if err != nil {
			return
		}
		c, err := raw.client(d, "alice")
		if err != nil {
			return
		}
		var again rawClient
		d = lab.Value(strict.Decode("f", c.text(), &again))(t)
		if back, err := again.client(d, "alice"); err != nil || !sameClient(back, c) {
			t.Errorf("got %+v, %v back, want %+v", back, err, c)
		}
	})
}

func FuzzProfile(f *testing.F) {
	f.Add(testProfile().text())
	locked := lab.Value(testProfile().Lock([]byte("a passphrase"), ""))(f)
	f.Add(locked.text())
	fleet := fleetProfile()
	fleet.Name = "gw"
	f.Add(fleet.text())
	f.Add([]byte("version = 1\nservices.ssh = []\n[services]\nweb = {}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var raw rawProfile
		d, err := strict.Decode("f", text, &raw)
		if err != nil {
			return
		}
		p, err := raw.profile(d, "gw")
		if err != nil {
			return
		}
		var again rawProfile
		d = lab.Value(strict.Decode("f", p.text(), &again))(t)
		back, err := again.profile(d, "gw")
		if err != nil || !bytes.Equal(back.text(), p.text()) {
			t.Errorf("got %+v, %v back, want %+v", back, err, p)
		}
		if p.Locked() {
			return
		}
		if q, err := ParseToken(p.Token()); err != nil || !bytes.Equal(q.text(), p.text()) {
			t.Errorf("the token says %+v, %v, want %+v", q, err, p)
		}
	})
}
