package firewall

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// forged is a ledger of so many slots, in a directory of its own, with these records under good sums.
func forged(t testing.TB, slots int, records ...[]byte) *ledger {
	t.Helper()
	l, err := openLedger(t.TempDir(), "boot", slots)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close() })
	for slot, r := range records {
		var b [recordSize]byte
		copy(b[:], r)
		copy(b[sumOffset:], l.sum(b[:sumOffset]))
		if err := l.put(slot, &b); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// sshRecord is what encode writes for an hour of alice's ssh, without its sum.
func sshRecord(t testing.TB, now time.Time) []byte {
	t.Helper()
	boot, err := bootClock()
	if err != nil {
		t.Fatal(err)
	}
	h := &holding{client: "alice", service: "ssh", source: netip.MustParseAddr("192.0.2.2"),
		ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}}
	var b [recordSize]byte
	new(ledger).encode(&b, h, now.Add(time.Hour), boot+time.Hour)
	return b[:sumOffset]
}

// TestForgedRecord: a daemon that was taken over can write any record under a good sum. What encode
// would not have written is no grant.
func TestForgedRecord(t *testing.T) {
	now := time.Now()
	change := func(at int, b ...byte) func([]byte) { return func(r []byte) { copy(r[at:], b) } }
	for _, test := range []struct {
		name  string
		forge func(r []byte)
		good  bool
	}{
		{"as it was written", func([]byte) {}, true},
		{"no ranges", change(98, 0), false},
		{"five ranges", change(98, 5), false},
		{"200 ranges", change(98, 200), false},
		{"a client of 33 bytes", change(32, 33), false},
		{"a client of 255 bytes", change(32, 255), false},
		{"a service of 33 bytes", change(65, 33), false},
		{"a service of 255 bytes", change(65, 255), false},
		{"bytes behind the client", change(64, 1), false},
		{"bytes behind the service", change(97, 1), false},
		{"bytes behind the ranges", change(118, 1), false},
		{"a byte before the sum", change(119, 1), false},
		{"no protocol", change(99, 0), false},
		{"ICMP", change(99, 1), false},
		{"port 0", change(100, 0, 0), false},
		{"a range that ends before it starts", change(102, 0, 21), false},
		{"ended by the wall clock", change(0, make([]byte, 8)...), false},
		{"ended by the boot clock", change(8, make([]byte, 8)...), false},
		{"an end before 1970", change(0, 0xff), false},
		{"a boot clock below zero", change(8, 0x80, 0, 0, 0, 0, 0, 0, 0), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := sshRecord(t, now)
			test.forge(r)
			l := forged(t, 4, r)
			hs, err := l.read(now)
			if err != nil || (len(hs) == 1) != test.good || len(hs)+len(l.free) != 4 {
				t.Errorf("got %d grants, %d free slots, %v", len(hs), len(l.free), err)
			}
		})
	}
}

// TestForgedRanges: a forger can try until the sum itself reads as ranges, past the end of the record.
func TestForgedRanges(t *testing.T) {
	now := time.Now()
	l := forged(t, 4)
	for n := range 1 << 14 {
		r := sshRecord(t, now)
		for at := 99; at < sumOffset; at += 5 {
			copy(r[at:], []byte{byte(service.TCP), 0, 22, 0, 22})
		}
		if r[98] = byte(maxRanges + 1 + n%200); r[98] == withDestination {
			continue // which is a record of another form
		}
		binary.BigEndian.PutUint16(r[6:], uint16(n)) // nanoseconds of its end
		if h, ok := l.decode(append(r, l.sum(r)...), 0, now); ok {
			t.Fatalf("got %v", h)
		}
	}
}

// TestForgedTwice: of two records of one grant one would outlive its revocation.
func TestForgedTwice(t *testing.T) {
	now := time.Now()
	l := forged(t, 4, sshRecord(t, now), sshRecord(t, now), sshRecord(t, now))
	hs, err := l.read(now)
	if err != nil || len(hs) != 1 || len(l.free) != 3 {
		t.Fatalf("got %d grants, %d free slots, %v, want one grant", len(hs), len(l.free), err)
	}
	if err := l.erase(hs[0]); err != nil {
		t.Fatal(err)
	}
	if hs, err = l.read(now); err != nil || len(hs) != 0 {
		t.Errorf("revoked, it is in the ledger %d times more; %v", len(hs), err)
	}
}

// TestForgedFlood: more ports than the kernel's sets take must not keep the guard from loading.
func TestForgedFlood(t *testing.T) {
	now := time.Now()
	var records [][]byte
	for i := range 64 {
		r := sshRecord(t, now)
		r[16+15] = byte(i) + 1
		binary.BigEndian.PutUint16(r[100:], 1)
		binary.BigEndian.PutUint16(r[102:], 65535)
		records = append(records, r)
	}
	l := forged(t, 64, records...)
	f := &Firewall{cfg: Config{size: 65535 * 2, Now: time.Now}, ledger: l, log: slog.New(slog.DiscardHandler)}
	if err := f.recall(now); err != nil {
		t.Fatal(err)
	}
	if n := len(f.held.elements); n != 65535*2 || len(l.free) != 62 {
		t.Errorf("got %d elements and %d free slots, want those of two grants", n, len(l.free))
	}
	if hs, err := l.read(now); err != nil || len(hs) != 2 {
		t.Errorf("the ledger still has %d grants, %v", len(hs), err)
	}
}

// FuzzLedger: no ledger, whatever is in it, ends the start, and what it brings back can be written
// and read again as it was.
func FuzzLedger(f *testing.F) {
	now := time.Now()
	good := sshRecord(f, now)
	f.Add(good)
	f.Add(bytes.Repeat([]byte{0xff}, recordSize))
	f.Add(append(bytes.Clone(good), good...))
	for _, at := range []int{0, 8, 16, 32, 65, 98, 99, 119} {
		r := bytes.Clone(good)
		r[at] ^= 0xff
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var records [][]byte
		for len(b) > 0 && len(records) < 8 {
			n := min(sumOffset, len(b))
			records, b = append(records, b[:n]), b[n:]
		}
		l := forged(t, 8, records...)
		f := &Firewall{cfg: Config{size: 1 << 12, Now: func() time.Time { return now }}, ledger: l,
			log: slog.New(slog.DiscardHandler)}
		if err := f.recall(now); err != nil {
			t.Fatal(err)
		}
		grants := f.held.grants(Match{}, now)
		if len(grants)+len(l.free) != 8 {
			t.Fatalf("%d grants and %d free slots of 8", len(grants), len(l.free))
		}
		for _, g := range grants {
			if err := g.check(now); err != nil {
				t.Errorf("the ledger brings back what nobody could be granted: %v", err)
			}
			if left := f.held.matching(Match{Client: g.Client, Source: g.Source,
				Services: []string{g.Service}}); len(left) == 0 {
				t.Errorf("nothing can revoke %v", g)
			}
		}
	})
}

// TestLinkedFiles: whoever owns the state directory can give root's file a name there. Root must
// not write to it, nor give it away.
func TestLinkedFiles(t *testing.T) {
	for _, name := range []string{ledgerName, keeperFile} {
		dir := owned(t)
		victim := filepath.Join(filepath.Dir(dir), "victim") // a link does not reach to another file system
		if err := errors.Join(os.WriteFile(victim, nil, 0o644), os.Link(victim, filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
		f, err := openOwned(filepath.Join(dir, name), true)
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "hard links") {
			t.Errorf("%s: got %v, want that it has another name", name, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(victim, &st); err != nil || st.Uid != 0 || st.Size != 0 || st.Mode&0o777 != 0o644 {
			t.Errorf("%s: the file that has another name was changed: %+v, %v", name, st, err)
		}
	}
}

// TestHeldLedger: any process of the ledger's owner can lock it, and root must not wait for it for ever.
func TestHeldLedger(t *testing.T) {
	l := forged(t, 4)
	other, err := os.OpenFile(l.file.Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := flock(other, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	err = aloneWithin(time.Millisecond, l.file, func() error { t.Error("called without the lock"); return nil })
	if err == nil || !strings.Contains(err.Error(), "fuser") {
		t.Errorf("got %v, want how to find who holds it", err)
	}
}

// TestKeeperLockOfAnother: a process that holds the keeper's lock and is none is not killed.
func TestKeeperLockOfAnother(t *testing.T) {
	dir := t.TempDir()
	file, err := openKeeperFile(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// A lock belongs to a process: it must be another one that holds it.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestHoldsALock$")
	cmd.Env = append(os.Environ(), "FIREWALL_LOCK="+file.Name())
	stdin, err := cmd.StdinPipe() // it ends with this
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cancel()
	lab.Eventually(t, "the lock to be held", func() bool {
		pid, err := lockHolder(file)
		return err == nil &&
			pid == cmd.Process.Pid
	})
	if err := endKeeper(file); err == nil || !strings.Contains(err.Error(), "is none") {
		t.Errorf("got %v, want that it is no keeper", err)
	}
	if pid, err := lockHolder(file); err != nil || pid != cmd.Process.Pid {
		t.Errorf("the lock is held by %d, %v, want %d: it was killed", pid, err, cmd.Process.Pid)
	}
}

// TestHoldsALock is the other process of TestKeeperLockOfAnother, and no test.
func TestHoldsALock(t *testing.T) {
	path := os.Getenv("FIREWALL_LOCK")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &lock); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, os.Stdin)
}
