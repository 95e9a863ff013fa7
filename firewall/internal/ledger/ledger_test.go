package ledger

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// ports parses a range such as "tcp/22".
func ports(s string) service.Ports {
	p, err := service.ParsePorts(s)
	if err != nil {
		panic(err)
	}
	return p
}

func openAndClose(t *testing.T, dir string) {
	t.Helper()
	l := lab.Value(Open(dir, "", 64))(t)
	lab.Must(t, l.Close())
}

// TestLedgerBeingMade: a ledger whose creation was interrupted is completed.
func TestLedgerBeingMade(t *testing.T) {
	for _, made := range []string{"", Magic[:5], Magic, strings.Repeat("\x00", 100)} {
		dir := t.TempDir()
		lab.Must(t, os.WriteFile(filepath.Join(dir, FileName), []byte(made), 0o600))
		openAndClose(t, dir)
		openAndClose(t, dir)
	}
}

// TestRoomOfEachFamily: IPv4 and IPv6 grants do not use each other's room.
func TestRoomOfEachFamily(t *testing.T) {
	r := room{v4: 2, v6: 1}
	for _, test := range []struct {
		source, ports string
		want          bool
	}{
		{"192.0.2.2", "tcp/22-24", false}, {"192.0.2.2", "tcp/22-23", true}, {"192.0.2.2", "tcp/22", false},
		{"2001:db8::2", "tcp/22-23", false}, {"2001:db8::2", "tcp/22", true}, {"2001:db8::2", "tcp/22", false},
	} {
		h := &Holding{Source: netip.MustParseAddr(test.source), Ports: []service.Ports{ports(test.ports)}}
		if got := r.reserve(h); got != test.want {
			t.Errorf("%s, %s: got %v, with room %+v left", test.source, test.ports, got, r)
		}
	}
}

// TestRecordsReadBack: a record reads back as it was written, but not under another boot id, and not with any byte
// changed.
func TestRecordsReadBack(t *testing.T) {
	l, other := &Ledger{bootID: "this boot"}, &Ledger{bootID: "another"}
	now := time.Now().Round(0)
	for name, change := range map[string]func(h *Holding){
		"IPv4":       func(*Holding) {},
		"IPv6":       func(h *Holding) { h.Source = netip.MustParseAddr("2001:db8::2") },
		"link-local": func(h *Holding) { h.Source, h.Link = netip.MustParseAddr("fe80::2"), 0x01020304 },
		"target":     func(h *Holding) { h.To = netip.MustParseAddr("198.51.100.5") },
		"IPv6 target": func(h *Holding) {
			h.Source, h.To = netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8:1::5")
		},
		"many ranges": func(h *Holding) {
			h.Ports = []service.Ports{ports("tcp/1-65535"), ports("udp/53"), ports("tcp/8443"), ports("udp/60000-60010")}
		},
		"one flow":             func(h *Holding) { h.Once = true },
		"one flow to a target": func(h *Holding) { h.Once, h.To = true, netip.MustParseAddr("198.51.100.5") },
		"long names": func(h *Holding) {
			h.Client, h.Service = strings.Repeat("a", NameSize-1), strings.Repeat("s", NameSize-1)
		},
	} {
		h := &Holding{Client: "alice", Service: "ssh", Source: netip.MustParseAddr("192.0.2.2"),
			Ports: []service.Ports{ports("tcp/22")}}
		change(h)
		h.Until = now.Add(time.Hour)
		var r [RecordSize]byte
		l.encode(&r, h, h.Until, time.Hour)
		got, ok := l.decode(r[:], 0, now)
		if !ok || got.Key() != h.Key() || got.Once != h.Once || !got.Until.Equal(h.Until) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, ok, h)
		}
		if got, ok := other.decode(r[:], 0, now); ok {
			t.Errorf("%s: another boot reads %+v", name, got)
		}
		for i := range r {
			forged := r
			forged[i] ^= 0x80
			if got, ok := l.decode(forged[:], 0, now); ok {
				t.Errorf("%s: with the byte at %d changed it reads as %+v", name, i, got)
			}
		}
	}
}

// TestRecordsOfNone: a grant that may not be given is not read back, even under a valid sum.
func TestRecordsOfNone(t *testing.T) {
	l, now := &Ledger{bootID: "this boot"}, time.Now().Round(0)
	good := func() *Holding {
		return &Holding{Client: "alice", Service: "ssh", Source: netip.MustParseAddr("192.0.2.2"),
			Ports: []service.Ports{ports("tcp/22")}}
	}
	for name, change := range map[string]func(h *Holding){
		"IPv4 link-local": func(h *Holding) { h.Source = netip.MustParseAddr("169.254.0.2") },
		"no ports":        func(h *Holding) { h.Ports, h.To = nil, netip.MustParseAddr("192.0.2.1") },
		"port 0":          func(h *Holding) { h.Ports = []service.Ports{{Proto: service.TCP}} },
		"no protocol":     func(h *Holding) { h.Ports = []service.Ports{{Low: 22, High: 22}} },
		"a range backwards": func(h *Holding) {
			h.Ports = []service.Ports{ports("tcp/22"), {Proto: service.TCP, Low: 23, High: 22}}
		},
		"two families": func(h *Holding) { h.To = netip.MustParseAddr("2001:db8:1::5") },
		"any target":   func(h *Holding) { h.To = netip.MustParseAddr("0.0.0.0") },
	} {
		h := good()
		change(h)
		var r [RecordSize]byte
		l.encode(&r, h, now.Add(time.Hour), time.Hour)
		if got, ok := l.decode(r[:], 0, now); ok {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	var r [RecordSize]byte
	for _, ends := range [][2]time.Duration{{0, time.Hour}, {time.Hour, 0}, {time.Hour, -1}} {
		l.encode(&r, good(), now.Add(ends[0]), ends[1])
		if got, ok := l.decode(r[:], 0, now); ok {
			t.Errorf("ends after %v: got %+v", ends, got)
		}
	}
}

// TestLedgerUnread: a file with an unreadable header is not overwritten.
func TestLedgerUnread(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	lab.Must(t, os.WriteFile(path, []byte("another's"), 0o600))
	f := lab.Value(os.OpenFile(path, os.O_WRONLY, 0))(t)
	defer f.Close()
	if err := checkHeader(f); err == nil {
		t.Error("got no error")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "another's" {
		t.Errorf("the file has %q, %v", text, err)
	}
}

// TestPhaseUnwritten: failing to write the phase is an error even if there is nothing to sync.
func TestPhaseUnwritten(t *testing.T) {
	dir := t.TempDir()
	openAndClose(t, dir)
	f := lab.Value(os.Open(filepath.Join(dir, FileName)))(t)
	defer f.Close()
	if err := WritePhase(f, TornDown); err == nil {
		t.Error("got no error")
	}
}

// TestLedgerIsOfThisBoot: without a boot id the ledger uses the kernel's.
func TestLedgerIsOfThisBoot(t *testing.T) {
	l := lab.Value(Open(t.TempDir(), "", 64))(t)
	defer l.Close()
	id := lab.Value(os.ReadFile("/proc/sys/kernel/random/boot_id"))(t)
	if want := strings.TrimSpace(string(id)); l.bootID != want {
		t.Errorf("got boot id %q, want %q", l.bootID, want)
	}
}

// TestLedgerTakesItsSpace: the file's space is allocated, so that a full disk later stops no grant.
func TestLedgerTakesItsSpace(t *testing.T) {
	const slots = 20000
	dir := t.TempDir()
	l := lab.Value(Open(dir, "", slots))(t)
	defer l.Close()
	var is unix.Stat_t
	lab.Must(t, unix.Stat(filepath.Join(dir, FileName), &is))
	if want := int64(HeaderSize + slots*(RecordSize+askedSize)); is.Size != want || is.Blocks*512 < want {
		t.Errorf("the file has %d bytes in %d blocks, want %d, all allocated", is.Size, is.Blocks, want)
	}
}

// TestClosedFile: a failure to read or write is an error.
func TestClosedFile(t *testing.T) {
	f := lab.Value(os.Create(filepath.Join(t.TempDir(), FileName)))(t)
	f.Close()
	if preallocate(f, 1<<20) == nil || checkHeader(f) == nil {
		t.Error("got no error")
	}
}
