package keys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/place"
	"sallyport/spa/lab"
)

// A writing is a change to a file with keys: the state before, and what another process does.
type writing struct {
	file  string // the file that is created or replaced
	fresh bool   // the file does not exist before
	setUp func(t *testing.T, dir string) (secrets []string)
	do    func(dir string) error
}

func aProfile() *Profile {
	return &Profile{Name: "gw", Address: "192.0.2.1", KnockPorts: []uint16{62201}, ServerID: NewServerID(),
		Gate: NewGateKey(), Client: "alice", ID: NewID(), Key: NewKey(), Services: map[string][]string{"ssh": {"tcp/22"}},
		Receipts: true}
}

// given returns where a writing finds its input: a directory beside its own.
func given(dir string) string { return filepath.Join(filepath.Dir(dir), "given") }

// giveProfile stores a profile there.
func giveProfile(t *testing.T, dir string) (*Profile, []string) {
	t.Helper()
	p := aProfile()
	lab.Must(t, errors.Join(os.MkdirAll(given(dir), 0o700), WriteProfile(given(dir), p, true)))
	return p, []string{p.Key.Reveal(), p.Gate.Reveal()}
}

// importProfile does what spa-client import does.
func importProfile(dir string, replace bool) error {
	p, err := ReadProfile(filepath.Join(given(dir), "gw.toml"))
	if err != nil {
		return err
	}
	return WriteProfile(dir, p, replace)
}

func aClient() *Client {
	return &Client{Name: "gw", ID: NewID(), Key: NewKey(), Allow: []string{"ssh"}}
}

func writings() map[string]writing {
	return map[string]writing{
		"import": {"gw.toml", true, func(t *testing.T, dir string) []string {
			_, secrets := giveProfile(t, dir)
			return secrets
		}, func(dir string) error { return importProfile(dir, false) }},
		"import over another": {"gw.toml", false, func(t *testing.T, dir string) []string {
			_, secrets := giveProfile(t, dir)
			return append(secrets, placed(t, WriteProfile(dir, aProfile(), false))...)
		}, func(dir string) error { return importProfile(dir, true) }},
		"unlock": {"gw.toml", false, func(t *testing.T, dir string) []string {
			p, secrets := giveProfile(t, dir)
			s := &StoredProfile{Profile: *p}
			locked := lab.Value(s.Lock([]byte("passphrase"), ""))(t)
			return append(secrets, placed(t, WriteStored(dir, locked, false))...)
		}, func(dir string) error {
			before, err := ReadStored(filepath.Join(dir, "gw.toml"))
			if err != nil {
				return err
			}
			after, err := ReadStored(filepath.Join(given(dir), "gw.toml"))
			if err != nil {
				return err
			}
			return ReplaceStored(dir, before, after)
		}},
		"new": {"gw.toml", true, func(t *testing.T, dir string) []string { return nil },
			func(dir string) error { return WriteClient(dir, aClient(), true) }},
		"rotate": {"gw.toml", false, func(t *testing.T, dir string) []string {
			return placed(t, WriteClient(dir, aClient(), true))
		}, func(dir string) error {
			_, err := ChangeClient(dir, "gw", func(c *Client) error { c.Rotate(time.Now().Add(time.Hour)); return nil })
			return err
		}},
		"set": {"gw.toml", false, func(t *testing.T, dir string) []string {
			return placed(t, WriteClient(dir, aClient(), true))
		}, func(dir string) error {
			_, _, err := SetClient(dir, "gw", []string{"max_for=1h", "allow=ssh,web"}, false, nil)
			return err
		}},
		"init": {"gate.key", true, func(t *testing.T, dir string) []string { return nil },
			func(dir string) error { return WriteGate(filepath.Join(dir, "gate.key"), NewGateKey()) }},
	}
}

func placed(t *testing.T, err error) []string {
	t.Helper()
	lab.Must(t, err)
	return nil
}

// TestKilledWriter is not a test: it is the other process of TestKilledWriting.
func TestKilledWriter(t *testing.T) {
	name := os.Getenv("KEYS_WRITING")
	if name == "" {
		return
	}
	runtime.LockOSThread() // strace counts the system calls of each thread
	w := writings()[name]
	lab.Must(t, w.do(os.Getenv("KEYS_DIR")))
}

// altering lists the system calls that change a name or content. A process killed at any other call leaves the same
// files as one killed at the next of these.
var altering = []string{"write", "linkat", "renameat", "unlinkat"}

// TestKilledWriting: whenever a program that writes keys is killed, the keys are in their place, or nowhere, or in a
// file that the next sweep removes; the file in their place is complete.
func TestKilledWriting(t *testing.T) {
	strace := lab.NeedProgram(t, "strace", "apt-get install strace")
	for name := range writings() {
		for _, links := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, files can be linked: %v", name, links), func(t *testing.T) {
				t.Parallel()
				killed := 0
				for _, call := range altering {
					for n := 1; killedAt(t, strace, name, call, n, links); n++ {
						killed++
					}
				}
				if killed < 2 {
					t.Errorf("it was killed %d times only", killed)
				}
			})
		}
	}
}

// killedAt runs the writing, kills it at its n-th such system call, and checks the files that it leaves. It returns
// false if there were fewer calls.
func killedAt(t *testing.T, strace, name, call string, n int, links bool) bool {
	t.Helper()
	w := writings()[name]
	dir := filepath.Join(t.TempDir(), "dir")
	lab.Must(t, os.Mkdir(dir, 0o700))
	secrets := w.setUp(t, dir)
	before, _ := os.ReadFile(filepath.Join(dir, w.file))
	args := []string{"-f", "-qq", "-o", os.DevNull, "-e", "trace=" + strings.Join(altering, ","), "-e",
		fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)}
	if !links {
		if call == "linkat" {
			return false
		}
		args = append(args, "-e", "inject=linkat:error=EPERM")
	}
	cmd := exec.Command(strace, append(args, os.Args[0], "-test.run=^TestKilledWriter$")...)
	cmd.Env = append(os.Environ(), "KEYS_WRITING="+name, "KEYS_DIR="+dir)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled()
	if err != nil && !killed {
		t.Fatalf("%s %d: %v\n%s", call, n, err, out)
	}
	at := fmt.Sprintf("killed at %s %d", call, n)
	w.whole(t, at, dir, before, killed)
	if w.fresh && links {
		w.nowhereElse(t, at, dir, secrets)
	}
	file, ours := strings.CutSuffix(w.file, Suffix)
	if !ours {
		_, err = place.Sweep(dir, func(name string) bool { return name == w.file }) // as ChangeGates does
	} else {
		_, err = Sweep(dir, file)
	}
	lab.Must(t, err)
	w.nowhereElse(t, at+", swept", dir, secrets)
	return killed
}

// whole fails unless the file is unchanged or can be read.
func (w *writing) whole(t *testing.T, at, dir string, before []byte, killed bool) {
	t.Helper()
	path := filepath.Join(dir, w.file)
	now, err := os.ReadFile(path)
	if err != nil && !(killed && w.fresh) {
		t.Fatalf("%s: %v", at, err)
	}
	if len(now) == 0 || bytes.Equal(now, before) {
		if !killed {
			t.Errorf("%s: nothing was written", at)
		}
		return // empty: see moveUnlinked
	}
	_, profile := ReadStored(path)
	_, client := ReadClient(path)
	_, gate := ReadGate(path)
	if profile != nil && client != nil && gate != nil {
		t.Errorf("%s: it cannot be read: %s", at, now)
	}
}

// nowhereElse fails if a key is in another file of the directory or, if no secrets are named, if there is any other
// file.
func (w *writing) nowhereElse(t *testing.T, at, dir string, secrets []string) {
	t.Helper()
	entries := lab.Value(os.ReadDir(dir))(t)
	for _, e := range entries {
		if e.Name() == w.file {
			continue
		}
		text := lab.Value(os.ReadFile(filepath.Join(dir, e.Name())))(t)
		found := secrets == nil
		for _, secret := range secrets {
			found = found || bytes.Contains(text, []byte(secret))
		}
		if found {
			t.Errorf("%s: a key is left in %s", at, e.Name())
		}
	}
}

// TestSweep: Sweep leaves files alone that are not ours.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"gw.toml", ".gw.toml.ABCDEFGH27.tmp", ".gw.toml.ABCDEFGH2.tmp", ".gw.toml.abcdefgh27.tmp",
		"gw.toml.ABCDEFGH27.tmp", ".gw.toml.ABCDEFGH27", ".ABCDEFGH27.tmp", "..ABCDEFGH27.tmp", ".tmp",
		".gx.toml.ABCDEFGH27.tmp", ".gate.key.ABCDEFGH27.tmp",
	} {
		lab.Must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	lab.Must(t, errors.Join(os.Mkdir(filepath.Join(dir, ".gw.toml.ABCDEFGHIJ.tmp"), 0o700),
		os.Symlink("gw.toml", filepath.Join(dir, ".gw.toml.ABCDEFGHIK.tmp"))))
	for _, step := range []struct {
		name string
		want int
	}{{"gw", 1}, {"gw", 0}, {"", 1}, {"gate", 0}} {
		if n, err := Sweep(dir, step.name); n != step.want || err != nil {
			t.Errorf("%q: got %d, %v, want %d", step.name, n, err, step.want)
		}
	}
	lab.OnlyFiles(t, dir, "..ABCDEFGH27.tmp", ".ABCDEFGH27.tmp", ".gate.key.ABCDEFGH27.tmp",
		".gw.toml.ABCDEFGH2.tmp", ".gw.toml.ABCDEFGH27",
		".gw.toml.ABCDEFGHIJ.tmp", ".gw.toml.ABCDEFGHIK.tmp", ".gw.toml.abcdefgh27.tmp", ".tmp", "gw.toml",
		"gw.toml.ABCDEFGH27.tmp")
	if n, err := Sweep(filepath.Join(dir, "none"), ""); n != 0 || err != nil {
		t.Errorf("without a directory: got %d, %v", n, err)
	}
	if _, err := Sweep(dir, "../gw"); err == nil {
		t.Error("a name that leads out of the directory: got no error")
	}
}

// TestChangeSweeps: a rotation removes the keys that an earlier, killed rotation left.
func TestChangeSweeps(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gate.key")
	lab.Must(t, errors.Join(WriteClient(dir, aClient(), true), WriteGate(path, NewGateKey())))
	for _, name := range []string{".gw.toml.ABCDEFGH27.tmp", ".gate.key.ABCDEFGH27.tmp"} {
		lab.Must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	if _, err := ChangeClient(dir, "gw", func(c *Client) error { c.Revoked = time.Now(); return nil }); err != nil {
		t.Fatal(err)
	}
	lab.OnlyFiles(t, dir, ".gate.key.ABCDEFGH27.tmp", "gate.key", "gw.toml")
	if _, err := ChangeGates(path, func(g *Gates) error { g.Current = NewGateKey(); return nil }); err != nil {
		t.Fatal(err)
	}
	lab.OnlyFiles(t, dir, "gate.key", "gw.toml")
}
