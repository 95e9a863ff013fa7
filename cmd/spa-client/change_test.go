package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// slowRing is a keyring that lets something else happen while it is used.
type slowRing struct {
	fileRing
	meanwhile func()
}

func (r slowRing) Get(name string) (string, error) {
	r.meanwhile()
	return r.fileRing.Get(name)
}

func (r slowRing) Set(name, passphrase string) error {
	r.meanwhile()
	return r.fileRing.Set(name, passphrase)
}

// TestKeyThatComesMeanwhile: a new key that is imported while the user types a passphrase is not overwritten by the old
// one.
func TestKeyThatComesMeanwhile(t *testing.T) {
	newProfile := func() *keys.Profile {
		return &keys.Profile{Name: "gw", Address: "192.0.2.1", KnockPorts: []uint16{62201},
			ServerID: keys.ServerID{1}, Gate: keys.NewGateKey(),
			Client: "alice", ID: keys.NewID(), Key: keys.NewKey()}
	}
	for name, args := range map[string][]string{"lock": {"lock", "gw", "--keyring"},
		"unlock": {"unlock", "gw"}, "import": {"import"}} {
		t.Run(name, func(t *testing.T) {
			config, ring := t.TempDir(), t.TempDir()
			hosts := filepath.Join(config, "hosts")
			lab.Must(t, os.Mkdir(hosts, 0o700))
			p, next := newProfile(), newProfile()
			var err error
			s := &keys.StoredProfile{Profile: *p}
			if name != "lock" {
				s = lab.Value(p.Lock([]byte("passphrase"), "a-name"))(t)
				lab.Must(t, fileRing(ring).Set("a-name", "passphrase"))
			}
			lab.Must(t, keys.WriteStored(hosts, s, false))
			a := &app{ring: slowRing{fileRing(ring), func() {
				if err := keys.WriteProfile(hosts, next, true); err != nil {
					t.Error(err)
				}
			}}}
			root := a.root()
			var out bytes.Buffer
			root.SetArgs(append(args, "--config", config))
			root.SetIn(strings.NewReader(newProfile().Token()))
			root.SetOut(&out)
			root.SetErr(&out)
			if err := root.ExecuteContext(t.Context()); !errors.Is(err, keys.ErrChanged) {
				t.Errorf("got %v, want ErrChanged; it says %q", err, out.String())
			}
			now, err := keys.ReadProfile(filepath.Join(hosts, "gw.toml"))
			if err != nil || now.ID != next.ID {
				t.Errorf("the key that came is gone: %v", err)
			}
			if left, _ := os.ReadDir(ring); name == "lock" && len(left) != 0 {
				t.Errorf("the keyring keeps %v", left)
			}
		})
	}
}
