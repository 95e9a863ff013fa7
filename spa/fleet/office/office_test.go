package office

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa/lab"
)

// acts are changes that take several writes.
var acts = map[string]func(o *Office, v *Vault, to string) error{
	"publish": func(o *Office, v *Vault, to string) error {
		_, err := o.Publish(context.Background(), v, Directory(to), to, false, time.Now())
		return err
	},
	"rotate": func(o *Office, v *Vault, to string) error {
		_, err := o.RotateClient(v, "client-000001", Rotation{Until: time.Now().Add(time.Hour), Force: true}, time.Now(),
			func(*keys.Profile) error { return nil })
		return err
	},
	"remove": func(o *Office, v *Vault, to string) error {
		_, err := o.RemoveAdmin(v, "carol")
		if errors.Is(err, ErrUnknown) {
			return nil // done before
		}
		return err
	},
	"rotate-key": func(o *Office, v *Vault, to string) error {
		return o.RotateKey(v, func(ed25519.PublicKey) error { return nil })
	},
}

func (h house) act(act func(*Office, *Vault, string) error, to string) error {
	return Change(h.dir, func(o *Office) error {
		v, err := o.Unlock(h.me)
		if err != nil {
			return err
		}
		return act(o, v, to)
	})
}

// snapshot returns all files below directories.
func snapshot(t *testing.T, dirs ...string) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range dirs {
		lab.Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				var text []byte
				text, err = os.ReadFile(path)
				fmt.Fprintf(&all, "%s %x\n", path, text)
			}
			return err
		}))
	}
	return all.String()
}

// damages are what can happen to a file. None leaves one that could mean anything.
var damages = map[string]func([]byte) []byte{
	"half a merge": func(text []byte) []byte {
		line := bytes.IndexByte(text, '\n') + 1
		return bytes.Join([][]byte{text[:line], []byte("<<<<<<< HEAD\n"), text[line:]}, nil)
	},
	"cut off":      func(text []byte) []byte { return bytes.TrimRight(text[:len(text)-5], "\n") },
	"empty":        func([]byte) []byte { return nil },
	"begins wrong": func(text []byte) []byte { return append([]byte("x = "), text...) },
}

// TestDamaged damages every set of an office's files. The error names one of them, and nothing is written.
func TestDamaged(t *testing.T) {
	h := newHouse(t)
	h.addGateways(t, 2)
	h.addClients(t, 2)
	to := t.TempDir()
	lab.Must(t, h.act(publishing, to))
	var files []string
	lab.Must(t, filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	}))
	whole := make([][]byte, len(files))
	for i, file := range files {
		whole[i] = lab.Value(os.ReadFile(file))(t)
	}
	kinds := make([]string, 0, len(damages))
	for kind := range damages {
		kinds = append(kinds, kind)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for set := 1; set < 1<<len(files); set++ {
		var damaged []string
		for i, file := range files {
			if set&(1<<i) != 0 {
				kind := kinds[random.IntN(len(kinds))]
				damaged = append(damaged, file+": "+kind)
				lab.Must(t, os.WriteFile(file, damages[kind](whole[i]), 0o600))
			}
		}
		before := snapshot(t, h.dir, to)
		err := h.act(publishing, to)
		names := false
		for _, d := range damaged {
			file, _, _ := strings.Cut(d, ": ")
			names = names || err != nil && strings.Contains(err.Error(), file)
		}
		if !names {
			t.Errorf("%v: %v", damaged, err)
		}
		if snapshot(t, h.dir, to) != before {
			t.Errorf("%v: something was written", damaged)
		}
		for i, file := range files {
			if set&(1<<i) != 0 {
				lab.Must(t, os.WriteFile(file, whole[i], 0o600))
			}
		}
	}
	lab.Must(t, h.act(publishing, to))
}

func publishing(o *Office, v *Vault, to string) error {
	_, err := o.Publish(context.Background(), v, Directory(to), to, false, time.Now())
	return err
}

// TestSwappedKeys: a key cannot be given to another client's terms, and one that another program sealed is refused.
func TestSwappedKeys(t *testing.T) {
	h := newHouse(t)
	h.addGateways(t, 1)
	h.addClients(t, 2)
	first, second := filepath.Join(h.dir, "clients/client-000000.age"), filepath.Join(h.dir, "clients/client-000001.age")
	own := lab.Value(os.ReadFile(second))(t)
	lab.Must(t, os.WriteFile(second, lab.Value(os.ReadFile(first))(t), 0o600))
	to := t.TempDir()
	if err := h.act(publishing, to); err == nil || !strings.Contains(err.Error(), second+": the key of another client") {
		t.Errorf("got %v", err)
	}
	forged := &keys.FleetKey{Client: "client-000001", Key: keys.NewKey()}
	lab.Must(t, os.WriteFile(second, lab.Value(seal(forged.Text(), h.me.Recipient()))(t), 0o600))
	if err := h.act(publishing, to); err == nil ||
		!strings.Contains(err.Error(), second+": not sealed to this office's vault") {
		t.Errorf("got %v", err)
	}
	lab.Must(t, os.WriteFile(second, own, 0o600))
	lab.Must(t, h.act(publishing, to))
}

// TestSameID: two clients whose ids are equal at a gateway are not published, there and at any other: all bundles are
// made before the first is put.
func TestSameID(t *testing.T) {
	h := newHouse(t)
	h.addGateways(t, 9)
	h.addClients(t, 2)
	only := &keys.Terms{Client: keys.Client{Name: "client-000001", Allow: []string{"ssh"}}, Gateways: []string{"gw8"}}
	lab.Must(t, os.WriteFile(filepath.Join(h.dir, "clients/client-000001.toml"), only.Text(), 0o640))
	lab.Must(t, h.act(func(o *Office, v *Vault, _ string) error {
		k := lab.Value(o.key(v, o.Clients[0]))(t)
		return o.writeKey(v, o.Clients[1].Name, &keys.FleetKey{Client: o.Clients[1].Name, Key: k.Key}, place.OnlyOver)
	}, ""))
	to := t.TempDir()
	before := snapshot(t, h.dir, to)
	if err := h.act(publishing, to); !errors.Is(err, ErrSameID) || !strings.Contains(err.Error(), "client-000001") {
		t.Errorf("got %v", err)
	}
	if snapshot(t, h.dir, to) != before {
		t.Error("something was written")
	}
}

// TestSealedEarlier: another administrator made a client while one was removed. Its key opens, and the next publish
// reports that the removed one could open it.
func TestSealedEarlier(t *testing.T) {
	h := newHouse(t)
	h.addGateways(t, 1)
	h.addClients(t, 2)
	carol := lab.Value(age.GenerateHybridIdentity())(t)
	lab.Must(t, h.act(func(o *Office, v *Vault, _ string) error { return o.AddAdmin(v, "carol", carol.Recipient()) }, ""))
	file := filepath.Join(h.dir, "clients/client-000001.age")
	early := lab.Value(os.ReadFile(file))(t)
	lab.Must(t, h.act(acts["remove"], ""))
	lab.Must(t, os.WriteFile(file, early, 0o600))
	lab.Must(t, h.act(func(o *Office, v *Vault, to string) error {
		r, err := o.Publish(context.Background(), v, Directory(to), to, false, time.Now())
		if err == nil && (len(r.Earlier) != 1 || r.Earlier[0] != "client-000001") {
			t.Errorf("got %v", r.Earlier)
		}
		return err
	}, t.TempDir()))
}

// TestSecretsStay: the secrets of a vault do not print.
func TestSecretsStay(t *testing.T) {
	h := newHouse(t)
	lab.Must(t, h.act(func(o *Office, v *Vault, _ string) error {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
			for _, value := range []any{v, struct{ v *Vault }{v}, []*Vault{v}} {
				text := fmt.Sprintf(verb, value)
				seed := fmt.Sprint([]byte(v.signing.Seed())[:4])
				if strings.Contains(text, "SECRET") || strings.Contains(text, v.gate.Reveal()) ||
					strings.Contains(text, strings.Trim(seed, "[]")) {
					t.Errorf("%s prints %s", verb, text)
				}
			}
		}
		return nil
	}, ""))
}

// TestPassphrase: a sealed identity opens with its passphrase only.
func TestPassphrase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spa", "fleet.identity")
	made := lab.Value(NewIdentity(path, []byte("right")))(t)
	if text := lab.Value(os.ReadFile(path))(t); bytes.Contains(text, []byte("AGE-SECRET")) {
		t.Error("the identity is not sealed")
	}
	answers := []string{"", "wrong", "right"}
	read, err := ReadIdentity(path, func(wrong bool) ([]byte, error) {
		if wrong != (len(answers) < 3) {
			t.Errorf("asked with wrong %v", wrong)
		}
		answer := answers[0]
		answers = answers[1:]
		return []byte(answer), nil
	})
	if err != nil || read.String() != made.String() {
		t.Errorf("got %v", err)
	}
	if _, err := ReadIdentity(path, func(wrong bool) ([]byte, error) {
		if wrong {
			return nil, ErrPassphrase
		}
		return []byte("wrong"), nil
	}); !errors.Is(err, ErrPassphrase) {
		t.Errorf("got %v", err)
	}
	if _, err := NewIdentity(path, nil); !errors.Is(err, place.ErrExists) {
		t.Errorf("over another identity: %v", err)
	}
}

// TestShareStays: the key of a site stays when the office's is replaced, also if the vault is older than sites.
func TestShareStays(t *testing.T) {
	h := newHouse(t)
	h.addGateways(t, 1)
	older := regexp.MustCompile(`(?m)^share = .*\n`)
	for name, text := range map[string]func([]byte) []byte{
		"vault":       func(text []byte) []byte { return text },
		"older vault": func(text []byte) []byte { return older.ReplaceAll(text, nil) },
	} {
		lab.Must(t, h.act(func(o *Office, v *Vault, _ string) error {
			v, _, err := parseVault(name, text(v.text(o.Fleet)))
			lab.Must(t, err)
			o.Gateways[0].Site = Site{Name: "edge"}
			before := lab.Value(o.contents(v, o.Gateways[0], nil))(t)
			lab.Must(t, o.RotateKey(v, func(ed25519.PublicKey) error { return nil }))
			v = lab.Value(o.Unlock(h.me))(t)
			after := lab.Value(o.contents(v, o.Gateways[0], nil))(t)
			if before.Share.IsZero() || !before.Share.Equal(after.Share) {
				t.Errorf("%s: another key after rotate-key", name)
			}
			return nil
		}, ""))
	}
}
