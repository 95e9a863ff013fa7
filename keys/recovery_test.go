package keys

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func recoveryProfile() *Profile {
	p := testProfile()
	p.Recovery = true
	return p
}

// TestRecoveryToken: the token of a recovery key comes back, as a line and as words, and is of no other form.
func TestRecoveryToken(t *testing.T) {
	for range 50 {
		p := recoveryProfile()
		p.ID, p.Key, p.Gate = NewID(), NewKey(), NewGateKey()
		token, ordinary := p.Token(), *p
		ordinary.Recovery = false
		back, err := ParseToken("\n" + token + "\n")
		if !strings.HasPrefix(token, "spar1") || err != nil || !sameProfile(back, p) {
			t.Fatalf("got %+v, %v, want %+v", back, err, p)
		}
		for _, other := range []string{"spa1" + strings.TrimPrefix(token, "spar1"),
			"spar1" + strings.TrimPrefix(ordinary.Token(), "spa1")} {
			if _, err := ParseToken(other); !errors.Is(err, ErrToken) {
				t.Errorf("another prefix: got %v", err)
			}
		}
		lines := p.Words()
		back, err = ParseWords(strings.ToUpper(strings.Join(lines, "\n")))
		if err != nil || !sameProfile(back, p) {
			t.Fatalf("from words: got %+v, %v", back, err)
		}
		if ordinary.Words() != nil || (&Profile{Recovery: true}).Words() != nil {
			t.Error("there are words for another profile")
		}
		if _, err := ParseWords(strings.Join(lines[:len(lines)-1], "\n")); !errors.Is(err, ErrWords) {
			t.Errorf("without the last line: got %v", err)
		}
		if _, err := ParseWords(strings.Join(append(lines, lines[0]), "\n")); err == nil {
			t.Error("with a line more it was taken")
		}
	}
}

// TestRecoveryProfile: a profile keeps that it is of a recovery key, also locked.
func TestRecoveryProfile(t *testing.T) {
	dir, p := t.TempDir(), recoveryProfile()
	lab.Must(t, WriteProfile(dir, p, false))
	path := filepath.Join(dir, p.Name+Suffix)
	if back := lab.Value(ReadProfile(path))(t); !sameProfile(back, p) || !back.Recovery {
		t.Errorf("got %+v", back)
	}
	locked := lab.Value(p.Lock([]byte("a passphrase of some length"), ""))(t)
	lab.Must(t, WriteStored(dir, locked, true))
	if back := lab.Value(ReadStored(path))(t); !back.Recovery {
		t.Error("the locked profile is of an ordinary key")
	}
}

// TestRecoveryUses: a number of uses that makes no sense is refused, with its line.
func TestRecoveryUses(t *testing.T) {
	for _, bad := range []string{"recovery = 0", "recovery = -1", "recovery = 101", "recovery = true", "recovery = {}"} {
		path := filepath.Join(t.TempDir(), "alice.toml")
		lab.Must(t, os.WriteFile(path, []byte(clientText+bad+"\n"), 0o600))
		if c, err := ReadClient(path); err == nil || !strings.Contains(err.Error(), ":5") {
			t.Errorf("%s: got %+v, %v", bad, c, err)
		}
	}
	if !slices.Contains(ClientKeys(), "recovery") {
		t.Error("uses cannot be set")
	}
}
