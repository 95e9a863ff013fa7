package firewall

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestKeep: what the ledger brings back and nobody keeps never reaches the kernel, and is
// not in the ledger any more.
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
	if n := len(s.ledger.free); n != s.config.slots-1 {
		t.Errorf("%d slots are free, want all but bob's", n)
	}
	s.config.Keep = nil
	s.open()
	s.load(0)
	if gs := s.Grants(time.Now()); len(gs) != 1 || gs[0].Client != "bob" {
		t.Errorf("got %v from the ledger, want bob's", gs)
	}
}

// TestPlantedLedger: the state directory belongs to the system user, and who opens the
// ledger may be root.
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
			if err := test.plant(filepath.Join(dir, ledgerName), victim); err != nil {
				t.Fatal(err)
			}
			l, err := openLedger(dir, "", 64)
			if err == nil {
				l.close()
				t.Error("got no error")
			}
			if test.name == "pipe" && err != nil && !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("got %v, want that it is not a regular file", err)
			}
			if err := MarkFirst(dir); err == nil {
				t.Error("got no error from MarkFirst")
			}
			if info, err := os.Stat(victim); err == nil && info.Size() != 0 {
				t.Error("the file that the link leads to was written")
			}
		})
	}
}

// owned is a state directory of an ordinary user.
func owned(t *testing.T) string {
	t.Helper()
	lab.NeedRoot(t)
	dir := t.TempDir()
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	return dir
}

func ownerOf(t *testing.T, dir string) int {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, ledgerName))
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

func openAndClose(t *testing.T, dir string) {
	t.Helper()
	l, err := openLedger(dir, "", 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
}

func TestLedgerBelongsToItsDirectory(t *testing.T) {
	dir := owned(t)
	openAndClose(t, dir)
	if uid := ownerOf(t, dir); uid != 65534 {
		t.Errorf("the ledger belongs to user %d, want the owner of its directory", uid)
	}
}

// TestOldLedgerKeepsItsOwner: a file that somebody else put there, empty so that it looks
// as if it was being made, is not given away.
func TestOldLedgerKeepsItsOwner(t *testing.T) {
	dir := owned(t)
	if err := os.WriteFile(filepath.Join(dir, ledgerName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openAndClose(t, dir)
	if uid := ownerOf(t, dir); uid != 0 {
		t.Errorf("the file was given to user %d", uid)
	}
}

// TestOwnerCannotBeChanged: without CAP_CHOWN the ledger can be used by who made it.
func TestOwnerCannotBeChanged(t *testing.T) {
	dir := owned(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends without its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var few [2]unix.CapUserData
		few[0].Effective = 1 << unix.CAP_DAC_OVERRIDE
		few[0].Permitted = few[0].Effective
		if err := unix.Capset(&header, &few[0]); err != nil {
			done <- err
			return
		}
		l, err := openLedger(dir, "", 64)
		if err == nil {
			err = l.close()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Errorf("got %v, want a ledger", err)
	}
	if uid := ownerOf(t, dir); uid != 0 {
		t.Fatalf("the ledger belongs to user %d; the thread had CAP_CHOWN", uid)
	}
}

// TestLedgerBeingMade: a process was killed while it made the file.
func TestLedgerBeingMade(t *testing.T) {
	for _, made := range []string{"", ledgerMagic[:5], ledgerMagic, strings.Repeat("\x00", 100)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, ledgerName), []byte(made), 0o600); err != nil {
			t.Fatal(err)
		}
		openAndClose(t, dir)
		openAndClose(t, dir)
	}
}

// TestRoomOfEachFamily: the sets of the two do not take each other's room.
func TestRoomOfEachFamily(t *testing.T) {
	r := room{v4: 2, v6: 1}
	for _, test := range []struct {
		source, ports string
		want          bool
	}{
		{"192.0.2.2", "tcp/22-24", false}, {"192.0.2.2", "tcp/22-23", true}, {"192.0.2.2", "tcp/22", false},
		{"2001:db8::2", "tcp/22-23", false}, {"2001:db8::2", "tcp/22", true}, {"2001:db8::2", "tcp/22", false},
	} {
		h := &holding{source: netip.MustParseAddr(test.source), ports: []service.Ports{ports(test.ports)}}
		if got := r.reserve(h); got != test.want {
			t.Errorf("%s, %s: there is room: %v, with %+v left", test.source, test.ports, got, r)
		}
	}
}

// TestRecordsReadBack: whatever may be granted is read back from its record as it was written, and from no other
// boot's; a record in which any byte is another is none.
func TestRecordsReadBack(t *testing.T) {
	l, other := &ledger{bootID: "this boot"}, &ledger{bootID: "another"}
	now := time.Now().Round(0)
	for name, change := range map[string]func(h *holding){
		"IPv4":       func(*holding) {},
		"IPv6":       func(h *holding) { h.source = netip.MustParseAddr("2001:db8::2") },
		"link-local": func(h *holding) { h.source, h.link = netip.MustParseAddr("fe80::2"), 0x01020304 },
		"target":     func(h *holding) { h.to = netip.MustParseAddr("198.51.100.5") },
		"IPv6 target": func(h *holding) {
			h.source, h.to = netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8:1::5")
		},
		"many ranges": func(h *holding) {
			h.ports = []service.Ports{ports("tcp/1-65535"), ports("udp/53"), ports("tcp/8443"), ports("udp/60000-60010")}
		},
		"long names": func(h *holding) {
			h.client, h.service = strings.Repeat("a", nameSize-1), strings.Repeat("s", nameSize-1)
		},
	} {
		h := &holding{client: "alice", service: "ssh", source: netip.MustParseAddr("192.0.2.2"),
			ports: []service.Ports{ports("tcp/22")}}
		change(h)
		h.until = now.Add(time.Hour)
		var r [recordSize]byte
		l.encode(&r, h, h.until, time.Hour)
		got, ok := l.decode(r[:], 0, now)
		if !ok || got.key() != h.key() || !got.until.Equal(h.until) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, ok, h)
		}
		if got, ok := other.decode(r[:], 0, now); ok {
			t.Errorf("%s: another boot has %+v", name, got)
		}
		for i := range r {
			forged := r
			forged[i] ^= 0x80
			if got, ok := l.decode(forged[:], 0, now); ok {
				t.Errorf("%s: with another byte at %d it is %+v", name, i, got)
			}
		}
	}
}

// TestRecordsOfNone: what may not be granted is not read back, though its sum is right.
func TestRecordsOfNone(t *testing.T) {
	l, now := &ledger{bootID: "this boot"}, time.Now().Round(0)
	good := func() *holding {
		return &holding{client: "alice", service: "ssh", source: netip.MustParseAddr("192.0.2.2"),
			ports: []service.Ports{ports("tcp/22")}}
	}
	for name, change := range map[string]func(h *holding){
		"IPv4 link-local":   func(h *holding) { h.source = netip.MustParseAddr("169.254.0.2") },
		"no ports":          func(h *holding) { h.ports = nil },
		"port 0":            func(h *holding) { h.ports = []service.Ports{{Proto: service.TCP}} },
		"no protocol":       func(h *holding) { h.ports = []service.Ports{{Low: 22, High: 22}} },
		"a range backwards": func(h *holding) { h.ports = []service.Ports{ports("tcp/22"), {Proto: service.TCP, Low: 23, High: 22}} },
		"two families":      func(h *holding) { h.to = netip.MustParseAddr("2001:db8:1::5") },
		"any target":        func(h *holding) { h.to = netip.MustParseAddr("0.0.0.0") },
	} {
		h := good()
		change(h)
		var r [recordSize]byte
		l.encode(&r, h, now.Add(time.Hour), time.Hour)
		if got, ok := l.decode(r[:], 0, now); ok {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	var r [recordSize]byte
	for _, ends := range [][2]time.Duration{{0, time.Hour}, {time.Hour, 0}, {time.Hour, -1}} {
		l.encode(&r, good(), now.Add(ends[0]), ends[1])
		if got, ok := l.decode(r[:], 0, now); ok {
			t.Errorf("ends after %v: got %+v", ends, got)
		}
	}
}

// TestLedgerOfBefore: what the version before wrote means the same, and is of this version from then on.
func TestLedgerOfBefore(t *testing.T) {
	k := decided(t)
	held := k.onDisk()
	if _, err := k.ledger.file.WriteAt([]byte{1}, int64(len(ledgerMagic))); err != nil {
		t.Fatal(err)
	}
	k.reopen(10)
	var version [1]byte
	if _, err := k.ledger.file.ReadAt(version[:], int64(len(ledgerMagic))); err != nil || version[0] != ledgerVersion {
		t.Errorf("the ledger is of version %d, %v", version[0], err)
	}
	if now := k.onDisk(); len(held) == 0 || !maps.Equal(now, held) {
		t.Errorf("it has %v, want %v", now, held)
	}
}

// TestLedgerUnread: over what cannot be read nothing is written.
func TestLedgerUnread(t *testing.T) {
	path := filepath.Join(t.TempDir(), ledgerName)
	if err := os.WriteFile(path, []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := checkHeader(f); err == nil {
		t.Error("got no error")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "another's" {
		t.Errorf("the file has %q, %v", text, err)
	}
}

// TestLedgerAlone: while one has the ledger alone no other has, and a ledger in memory is everybody's own.
func TestLedgerAlone(t *testing.T) {
	k := newKept(t)
	other := k.reopen(10)
	err := k.ledger.alone(func() error {
		return aloneWithin(time.Millisecond, other.file, func() error { t.Error("two have it alone"); return nil })
	})
	if err == nil {
		t.Error("got no error")
	}
	called := false
	memory := memoryLedger(1)
	if err := errors.Join(memory.alone(func() error { called = true; return nil }), memory.close()); err != nil ||
		!called {
		t.Errorf("in memory: %v, and it was called: %v", err, called)
	}
}

// TestMarkUnwritten: that the mark was not written is an error, also where there is nothing to sync.
func TestMarkUnwritten(t *testing.T) {
	dir := t.TempDir()
	openAndClose(t, dir)
	f, err := os.Open(filepath.Join(dir, ledgerName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := writeMark(f, tornDown); err == nil {
		t.Error("got no error")
	}
}

// TestLedgerIsOfThisBoot: what nobody names is the kernel's.
func TestLedgerIsOfThisBoot(t *testing.T) {
	l, err := openLedger(t.TempDir(), "", 64)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.TrimSpace(string(id)); l.bootID != want {
		t.Errorf("got %q, want %q", l.bootID, want)
	}
}

// TestLedgerTakesItsSpace: a disk that fills up later stops no grant.
func TestLedgerTakesItsSpace(t *testing.T) {
	const slots = 20000
	dir := t.TempDir()
	l, err := openLedger(dir, "", slots)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	var is unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, ledgerName), &is); err != nil {
		t.Fatal(err)
	}
	if want := int64(headerSize + slots*recordSize); is.Size != want || is.Blocks*512 < want {
		t.Errorf("the file has %d bytes in %d blocks, want %d that are all there", is.Size, is.Blocks, want)
	}
}

// TestLedgerClosed: what cannot be read or written is an error, and nothing is held.
func TestLedgerClosed(t *testing.T) {
	k := newKept(t)
	l := k.reopen(10)
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if hs, err := l.read(k.now); err == nil || hs != nil {
		t.Errorf("read: got %v, %v, want an error", hs, err)
	}
	if m, err := l.mark(); err == nil {
		t.Errorf("mark: got %d, want an error", m)
	}
	h := &holding{client: "alice", source: portGrant("", k.now).Source, ports: portGrant("", k.now, "tcp/22").Ports}
	for name, err := range map[string]error{
		"write": l.write(h, k.now.Add(time.Hour), k.now), "erase": l.erase(h), "set the mark": l.setMark(loadAgain),
		"take space": preallocate(l.file, 1<<20), "header": checkHeader(l.file),
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
