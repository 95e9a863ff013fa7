package keys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"sallyport/keys/place"
	"sallyport/spa/lab"
)

var passphrase = []byte("correct horse battery staple")

// cheaply makes a locked profile that opens quickly, like those locked with a keyring.
func cheaply(t *testing.T, p *Profile) *StoredProfile {
	t.Helper()
	s := lab.Value(p.Lock(passphrase, "a-name"))(t)
	return s
}

// TestReplaceStored: a change made to the file after it was read is not overwritten.
func TestReplaceStored(t *testing.T) {
	dir, p := t.TempDir(), testProfile()
	path := filepath.Join(dir, p.Name+Suffix)
	read := func() *StoredProfile {
		t.Helper()
		s := lab.Value(ReadStored(path))(t)
		return s
	}
	lab.Must(t, WriteProfile(dir, p, false))
	before := read()
	locked := cheaply(t, &before.Profile)
	renewed := *p
	renewed.Key, renewed.ID = NewKey(), NewID()
	lab.Must(t, WriteProfile(dir, &renewed, true))
	if err := ReplaceStored(dir, before, locked); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), path) {
		t.Errorf("over a new key: got %v, want ErrChanged", err)
	}
	if now := read(); now.ID != renewed.ID {
		t.Error("the new key is gone")
	}
	before = read()
	if err := ReplaceStored(dir, before, cheaply(t, &before.Profile)); err != nil || !read().Locked() {
		t.Errorf("as it was read: got %v", err)
	}
	relocked := read()
	if err := ReplaceStored(dir, relocked, before); err != nil || read().Locked() {
		t.Errorf("unlocked: got %v", err)
	}
	lab.Must(t, os.Remove(path))
	if err := ReplaceStored(dir, before, before); !errors.Is(err, ErrChanged) {
		t.Errorf("forgotten while asked: got %v, want ErrChanged", err)
	}
	lab.OnlyFiles(t, dir)
}

// TestLock: a locked profile has no key on disk, and opens only with its passphrase.
func TestLock(t *testing.T) {
	for _, keyring := range []string{"", "spa-0123"} {
		dir := t.TempDir()
		p := testProfile()
		locked, err := p.Lock(passphrase, keyring)
		if err != nil || !locked.Locked() || locked.Keyring() != keyring || !locked.Key.IsZero() || !locked.Gate.IsZero() ||
			locked.ID != 0 {
			t.Fatalf("got %+v, %v", locked, err)
		}
		lab.Must(t, WriteProfile(dir, p, false))
		if err := WriteStored(dir, locked, false); !errors.Is(err, place.ErrExists) {
			t.Errorf("over the profile: got %v, want ErrExists", err)
		}
		lab.Must(t, WriteStored(dir, locked, true))
		lab.OnlyFiles(t, dir, "gw.toml")
		path := filepath.Join(dir, "gw.toml")
		text := lab.Value(os.ReadFile(path))(t)
		for _, secret := range []string{p.Key.Reveal(), p.Gate.Reveal(), p.ID.String(), string(passphrase)} {
			if strings.Contains(string(text), secret) {
				t.Errorf("the file has a secret in it:\n%s", text)
			}
		}
		if _, err := ReadProfile(path); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
			t.Errorf("ReadProfile: got %v, want ErrLocked", err)
		}
		back, err := ReadStored(path)
		if err != nil || back.Keyring() != keyring || !sameProfile(&back.Profile, &locked.Profile) {
			t.Fatalf("got %+v, %v", back, err)
		}
		if q, err := back.Unlock([]byte("correct horse battery stapl")); !errors.Is(err, ErrPassphrase) || q != nil {
			t.Errorf("another passphrase: got %v", err)
		}
		if q, err := back.Unlock(passphrase); err != nil || !sameProfile(q, p) || q.ID != p.ID {
			t.Errorf("got %+v, %v, want %+v", q, err, p)
		}
	}
}

func TestLockRefuses(t *testing.T) {
	if s, err := (&Profile{}).Lock(passphrase, ""); err == nil || s != nil {
		t.Errorf("an invalid profile: got %v, %v", s, err)
	}
	if _, err := testProfile().Lock(passphrase, `"`); err == nil {
		t.Error("a name that would need escapes")
	}
	bad := cheaply(t, testProfile())
	bad.Address = ""
	if err := WriteStored(t.TempDir(), bad, false); err == nil || !strings.Contains(err.Error(), "address") {
		t.Errorf("an invalid profile was written: %v", err)
	}
	open := StoredProfile{Profile: *testProfile()}
	if q, err := open.Unlock(nil); err != nil || !sameProfile(q, &open.Profile) || open.Keyring() != "" {
		t.Errorf("one that is not locked: %v, %v", q, err)
	}
}

// TestLockBinds: an attacker who can write the file can break it, but cannot have other contents used with its keys.
func TestLockBinds(t *testing.T) {
	p := testProfile()
	good := cheaply(t, p)
	for name, change := range map[string]func(*StoredProfile){
		"name":       func(s *StoredProfile) { s.Name = "other" },
		"address":    func(s *StoredProfile) { s.Address = "evil.example.net" },
		"ports":      func(s *StoredProfile) { s.KnockPorts = []uint16{62201} },
		"server id":  func(s *StoredProfile) { s.ServerID[0] ^= 1 },
		"client":     func(s *StoredProfile) { s.Client = "bob" },
		"services":   func(s *StoredProfile) { s.Services = map[string][]string{"ssh": {"tcp/22"}} },
		"receipts":   func(s *StoredProfile) { s.Receipts = false },
		"source":     func(s *StoredProfile) { s.Source = "" },
		"keyring":    func(s *StoredProfile) { s.lock.keyring = "" },
		"memory":     func(s *StoredProfile) { s.lock.memory++ },
		"passes":     func(s *StoredProfile) { s.lock.passes++ },
		"lanes":      func(s *StoredProfile) { s.lock.lanes++ },
		"salt":       func(s *StoredProfile) { s.lock.salt[0] ^= 1 },
		"nonce":      func(s *StoredProfile) { s.lock.sealed[0] ^= 1 },
		"the sealed": func(s *StoredProfile) { s.lock.sealed[40] ^= 1 },
		"the tag":    func(s *StoredProfile) { s.lock.sealed[sealedSize-1] ^= 1 },
	} {
		s, l := *good, *good.lock
		l.salt, l.sealed = bytes.Clone(l.salt), bytes.Clone(l.sealed)
		s.lock = &l
		_, err := s.Unlock(passphrase)
		lab.Must(t, err)
		change(&s)
		if _, err := s.Unlock(passphrase); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%s: got %v, want ErrPassphrase", name, err)
		}
	}
}

// TestLockBindsRecovery: an attacker who can write the file cannot make a recovery key an ordinary one. One that an
// earlier program locked, which did not bind that, opens.
func TestLockBindsRecovery(t *testing.T) {
	p := testProfile()
	p.Recovery = true
	s := cheaply(t, p)
	if q, err := s.Unlock(passphrase); err != nil || !q.Recovery {
		t.Errorf("got %v, %v", q, err)
	}
	s.Recovery = false
	if _, err := s.Unlock(passphrase); !errors.Is(err, ErrPassphrase) {
		t.Errorf("a recovery key was made an ordinary one: %v", err)
	}
	s.Recovery = true
	aead := lab.Value(s.lock.aead(passphrase))(t)
	nonce := bytes.Clone(s.lock.sealed[:chacha20poly1305.NonceSizeX])
	plain := lab.Value(aead.Open(nil, nonce, s.lock.sealed[len(nonce):], s.bound(lockRecoveryLabel)))(t)
	s.lock.sealed = aead.Seal(bytes.Clone(nonce), nonce, plain, s.bound(lockLabel))
	if q, err := s.Unlock(passphrase); err != nil || !q.Recovery {
		t.Errorf("locked by an earlier program: %v, %v", q, err)
	}
}

// TestLockIsBounded: a file cannot demand more memory or time than our own locks do.
func TestLockIsBounded(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gw.toml")
	good := string(cheaply(t, testProfile()).text())
	line := 1 + strings.Count(good[:strings.Index(good, "locked =")], "\n")
	for change, want := range map[[2]string]string{
		{"memory = 8192", "memory = 8191"}:                      "locked.memory: must be 8192 to 262144",
		{"memory = 8192", "memory = 262145"}:                    "locked.memory: must be 8192 to 262144",
		{"memory = 8192", "memory = -1"}:                        "locked.memory: must be 8192 to 262144",
		{"memory = 8192", "memory = 4294975488"}:                "locked.memory: must be 8192 to 262144",
		{"passes = 1", "passes = 0"}:                            "locked.passes: must be 1 to 10",
		{"passes = 1", "passes = 11"}:                           "locked.passes: must be 1 to 10",
		{"lanes = 1", "lanes = 0"}:                              "locked.lanes: must be 1 to 8",
		{"lanes = 1", "lanes = 9"}:                              "locked.lanes: must be 1 to 8",
		{"salt = \"", "salt = \"AAAA"}:                          "locked.salt: is not 16 bytes in base64",
		{"sealed = \"", "sealed = \"AAAA"}:                      "locked.sealed: is not 112 bytes in base64",
		{"sealed = \"", "sealed = \"*"}:                         "locked.sealed: is not 112 bytes in base64",
		{"keyring = \"a-name\"", "keyring = \"A NAME\""}:        "locked.keyring: a name in the keyring",
		{"passes = 1, ", ""}:                                    "locked.passes: missing",
		{"passes = 1,", "passes = 1, passed = 1,"}:              "locked.passed: unknown key",
		{"locked = {", "id = \"00000000000000ab\"\nlocked = {"}: "id: must not be in plain text",
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if text == good {
			t.Fatalf("%q is not in\n%s", change[0], good)
		}
		lab.Must(t, os.WriteFile(path, []byte(text), 0o600))
		if s, err := ReadStored(path); err == nil || s != nil || !strings.Contains(err.Error(),
			fmt.Sprintf("%s:%d: %s", path, line, want)) {
			t.Errorf("%v: got %v, want line %d: %s", change, err, line, want)
		}
	}
}
