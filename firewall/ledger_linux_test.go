package firewall

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/ledger"
	"sallyport/firewall/internal/statefile"
	"sallyport/spa/lab"
)

// TestKeep: a grant in the ledger that Keep rejects never reaches the kernel, and is erased from the ledger.
func TestKeep(t *testing.T) {
	s := guarded(t, nil)
	s.grant("alice", "192.0.2.2", long)
	s.grant("bob", "192.0.2.3", long)
	var asked []Grant
	s.config.Keep = func(g Grant) bool {
		asked = append(asked, g)
		return g.Client != "alice"
	}
	s.open()
	s.load(0)
	s.dark("192.0.2.2", "192.0.2.1", "22")
	s.connect("192.0.2.3", "192.0.2.1", "22")
	if len(asked) != 2 || len(asked[0].Ports) != 1 || !asked[0].Until.After(time.Now()) {
		t.Errorf("asked about %v, want alice's grant and bob's", asked)
	}
	if n := spare(s.ledger); n != s.config.slots-1 {
		t.Errorf("%d slots are free, want all but bob's", n)
	}
	s.config.Keep = nil
	s.open()
	s.load(0)
	if gs := s.Grants(time.Now()); len(gs) != 1 || gs[0].Client != "bob" {
		t.Errorf("got %v from the ledger, want bob's", gs)
	}
}

// TestPlantedLedger: the state directory belongs to the system user, but root may open the ledger.
func TestPlantedLedger(t *testing.T) {
	for _, test := range []struct {
		name  string
		plant func(path, victim string) error
	}{
		{"link to nothing", func(path, victim string) error { return os.Symlink(victim, path) }},
		{"link to a file", func(path, victim string) error {
			if err := os.WriteFile(victim, nil, 0o600); err != nil {
				return err
			}
			return os.Symlink(victim, path)
		}},
		{"lease", func(path, _ string) error {
			f, err := os.Create(path)
			if err != nil {
				return err
			}
			t.Cleanup(func() { f.Close() })
			_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
			return err
		}},
		{"pipe", func(path, _ string) error { return unix.Mkfifo(path, 0o600) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, victim := t.TempDir(), filepath.Join(t.TempDir(), "victim")
			lab.Must(t, test.plant(filepath.Join(dir, ledger.FileName), victim))
			l, err := ledger.Open(dir, "", 64)
			if err == nil {
				l.Close()
				t.Error("got no error")
			}
			if test.name == "pipe" && err != nil && !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("got %v, want that it is not a regular file", err)
			}
			if err := ForceFirstLoad(dir); err == nil {
				t.Error("got no error from ForceFirstLoad")
			}
			if info, err := os.Stat(victim); err == nil && info.Size() != 0 {
				t.Error("the file that the link leads to was written")
			}
		})
	}
}

// TestLedgerOfBefore: a ledger of the previous version keeps its meaning, and becomes one of this version.
func TestLedgerOfBefore(t *testing.T) {
	k := decided(t)
	held := k.onDisk()
	_, err := k.ledger.File.WriteAt([]byte{1}, int64(len(ledger.Magic)))
	lab.Must(t, err)
	k.reopen(10)
	var version [1]byte
	if _, err := k.ledger.File.ReadAt(version[:], int64(len(ledger.Magic))); err != nil || version[0] != ledger.Version {
		t.Errorf("the ledger is of version %d, %v", version[0], err)
	}
	if now := k.onDisk(); len(held) == 0 || !maps.Equal(now, held) {
		t.Errorf("it has %v, want %v", now, held)
	}
}

// TestLedgerAlone: only one opener has the ledger's lock at a time; a ledger in memory has no lock.
func TestLedgerAlone(t *testing.T) {
	k := newKept(t)
	other := k.reopen(10)
	err := k.ledger.Alone(func() error {
		return statefile.AloneWithin(time.Millisecond, other.File, func() error { t.Error("two have the lock"); return nil })
	})
	if err == nil {
		t.Error("got no error")
	}
	called := false
	memory := ledger.InMemory(1)
	if err := errors.Join(memory.Alone(func() error { called = true; return nil }), memory.Close()); err != nil ||
		!called {
		t.Errorf("in memory: %v, and it was called: %v", err, called)
	}
}

// TestLedgerClosed: a ledger that cannot be read or written is an error, and no grant is held.
func TestLedgerClosed(t *testing.T) {
	k := newKept(t)
	l := k.reopen(10)
	lab.Must(t, l.Close())
	if hs, err := l.Read(k.now); err == nil || hs != nil {
		t.Errorf("read: got %v, %v, want an error", hs, err)
	}
	if m, err := l.Phase(); err == nil {
		t.Errorf("phase: got %d, want an error", m)
	}
	h := &ledger.Holding{Client: "alice", Source: portGrant("", k.now).Source, Ports: portGrant("", k.now, "tcp/22").Ports}
	for name, err := range map[string]error{
		"write": l.Write(h, k.now), "erase": l.Erase(h), "set the phase": l.SetPhase(ledger.LoadAgain),
	} {
		if err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	k.ledger = l
	k.held = nil
	if err := k.Load(t.Context(), 0, k.now); err == nil {
		t.Error("load: got no error")
	}
}
