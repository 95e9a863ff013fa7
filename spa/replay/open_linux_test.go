package replay

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"
)

func mustOpen(t *testing.T, path string, c Config, now time.Time) *Journal {
	t.Helper()
	j := lab.Value(Open(path, c, now))(t)
	t.Cleanup(func() { j.Close() })
	return j
}

func created(t *testing.T, c Config) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	lab.Must(t, Create(path, c, start))
	return path
}

// wantFloor checks what a journal that starts again at now refuses.
func wantFloor(t *testing.T, j *Journal, now, floor time.Time, why reason) {
	t.Helper()
	s := j.Status()
	if !s.Floor.Equal(floor) || !s.FloorUntil.Equal(floor) || s.Reason != why.String() {
		t.Errorf("got floor %v until %v, %q; want %v, %q", s.Floor, s.FloorUntil, s.Reason, floor, why)
	}
	if (s.Damaged != "") != (why == damaged) {
		t.Errorf("%q, and a damaged journal is kept at %q", why, s.Damaged)
	}
	near := func(stamp time.Time) time.Time { // a clock at which the stamp is fresh
		if stamp.Sub(now) > 30*time.Second {
			return stamp
		}
		return now
	}
	admit(t, j, packet(77, 1, floor), near(floor), ErrFloor)
	admit(t, j, packet(77, 1, floor.Add(1)), near(floor.Add(1)), nil)
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	if os.Geteuid() == 0 {
		lab.Must(t, os.Chown(dir, 4321, 4322))
	}
	path := filepath.Join(dir, "journal")
	lab.Must(t, Create(path, config(), start))
	fi := lab.Value(os.Stat(path))(t)
	di := lab.Value(os.Stat(dir))(t)
	file, owner := fi.Sys().(*syscall.Stat_t), di.Sys().(*syscall.Stat_t)
	if fi.Mode() != 0o600 || file.Uid != owner.Uid || file.Gid != owner.Gid {
		t.Errorf("got mode %v, owner %d:%d", fi.Mode(), file.Uid, file.Gid)
	}
	if want := offset(64); fi.Size() != want || file.Blocks*512 < want {
		t.Errorf("got %d bytes, %d on disk, want %d", fi.Size(), file.Blocks*512, want)
	}
	if err := Create(path, config(), start); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing journal: got %v", err)
	}
}

// A lost header may take a mark with it. A packet admitted under a longer window than the configured one is refused
// anyway, whatever happened to the journal.
func TestShorterWindowAfterDamage(t *testing.T) {
	long := config()
	long.Window = 10 * time.Minute
	next := long
	next.BootID = "next"
	begun := after(20 * time.Minute)
	for name, open := range map[string]func(path string) *Journal{
		"created": func(path string) *Journal {
			wantErr(t, "Create", Create(path, long, start), nil)
			return mustOpen(t, path, long, begun)
		},
		"missing": func(path string) *Journal { return mustOpen(t, path, long, start) },
		"longer now": func(path string) *Journal {
			wantErr(t, "Create", Create(path, config(), start), nil)
			return mustOpen(t, path, long, begun)
		},
		"rebooted": func(path string) *Journal {
			wantErr(t, "Create", Create(path, config(), start), nil)
			return mustOpen(t, path, next, start)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal")
			j := open(path)
			spent := packet(1, 1, begun.Add(long.Window))
			admit(t, j, spent, begun, nil)
			j.Close()
			newest := int64(j.store.header.Number % 2)
			image := lab.Value(os.ReadFile(path))(t)
			image[newest*page]++
			short := config()
			if name == "rebooted" {
				short = next
				short.Window = config().Window
			}
			again := reopen(t, &memDisk{image: image}, short, begun)
			if got := again.Status().Reason; got != damaged.String() {
				t.Errorf("got %q", got)
			}
			admit(t, again, spent, spent.Stamp, ErrFloor)
		})
	}
}

// A journal opened with a shorter window does not keep longer floors for it.
func TestShorterWindowIsKept(t *testing.T) {
	c := config()
	c.Window = 10 * time.Minute
	j, d := fresh(t, c)
	spent := packet(1, 1, after(10*time.Minute))
	admit(t, j, spent, start, nil)
	mark := j.Status().HighWater
	j = reopen(t, copyOf(d), config(), start)
	d = j.store.disk.(*memDisk)
	if s := j.Status(); s.Reason != "" || s.Live != 1 || !s.HighWater.Equal(mark) {
		t.Errorf("got %+v", s)
	}
	next := config()
	next.BootID = "next"
	wantFloorStatus(t, reopen(t, copyOf(d), next, start), mark.Add(30*time.Second))
	for n := range int64(2) { // either header has the high-water mark
		bad := copyOf(d)
		bad.image[n*page]++
		admit(t, reopen(t, bad, config(), start), spent, spent.Stamp, ErrFloor)
	}
	d.fail = failing("write")
	c, id, err := c.complete()
	wantErr(t, "complete", err, nil)
	if _, err := open(d, c, id, start, nil); !errors.Is(err, errBroken) {
		t.Errorf("opened with a longer window that is not in the file: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	if err := Create(path, Config{}, start); err == nil {
		t.Error("a journal without a window was created")
	}
	if _, err := Open(path, Config{Window: -1}, start); err == nil {
		t.Error("a journal with a negative window was opened")
	}
	many := config()
	many.LiveNonces = 4097
	if err := Create(path, many, start); err == nil {
		t.Error("a journal for too many live nonces was created")
	}
	if _, err := Open(path, many, start); err == nil {
		t.Error("a journal for too many live nonces was opened")
	}
	long := config()
	long.Room = maxRoom + 1
	if err := Create(path, long, start); err == nil {
		t.Error("a journal longer than one may be was created")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file was made")
	}
}

func TestOwnIdentity(t *testing.T) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	wantErr(t, "reading the boot id", err, nil)
	machine, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		machine = []byte("none")
	}
	c, id, err := Config{Window: time.Second}.complete()
	if c.Room != defaultRoom || c.LiveNonces != defaultLive {
		t.Errorf("got %+v", c)
	}
	want := identity{hash("boot", strings.TrimSpace(string(boot))), hash("machine", strings.TrimSpace(string(machine)))}
	if err != nil || id != want {
		t.Errorf("got %x, %v, want %x", id, err, want)
	}
	c = Config{Window: time.Second, Room: 16}
	path := created(t, c)
	if s := mustOpen(t, path, c, start).Status(); s.Reason != "" || !s.Floor.IsZero() {
		t.Errorf("got %+v", s)
	}
}

func TestRestartRefusesNothingFresh(t *testing.T) {
	path := created(t, config())
	for n := range 3 {
		j := mustOpen(t, path, config(), start)
		admit(t, j, packet(1, n, start), start, nil)
		for old := range n {
			admit(t, j, packet(1, old, start), start, ErrSpent)
		}
		if s := j.Status(); !s.Floor.IsZero() || s.Reason != "" || s.Live != n+1 || s.Room != 64 {
			t.Errorf("got %+v", s)
		}
		wantErr(t, "Close", j.Close(), nil)
		wantErr(t, "Close again", j.Close(), nil)
	}
}

// TestRestartKeepsRoom: slots that were free before a restart are free after it, and a journal that has grown keeps its
// length when it starts again.
func TestRestartKeepsRoom(t *testing.T) {
	c := config()
	c.Room = 16
	j, d := fresh(t, c)
	for n := range 200 {
		now := after(time.Duration(n) * 2 * time.Second)
		admit(t, j, packet(uint64(n%3), n, now), now, nil)
		if n%40 != 39 {
			continue
		}
		wantErr(t, "Close", j.Close(), nil)
		before := j.Status()
		d = copyOf(d)
		j = reopen(t, d, c, now)
		if after := j.Status(); after != before {
			t.Fatalf("got %+v, before %+v", after, before)
		}
	}
	if j.Status().Room <= c.Room {
		t.Error("it did not grow")
	}
	room := j.Status().Room
	wantErr(t, "Close", j.Close(), nil)
	c.BootID = "next"
	if j := reopen(t, d, c, after(time.Hour)); d.count("cut") > 0 || j.Status().Room != room {
		t.Errorf("cut %d times, to %d slots of %d", d.count("cut"), j.Status().Room, room)
	}
}

func TestReboot(t *testing.T) {
	path := created(t, config())
	j := mustOpen(t, path, config(), start)
	spent := packet(1, 1, after(30*time.Second))
	admit(t, j, spent, start, nil)
	mark := j.Status().HighWater
	if want := spent.Stamp.Add(lead); !mark.Equal(want) {
		t.Errorf("high-water mark: got %v, want %v", mark, want)
	}
	wantErr(t, "SetFloor", j.SetFloor([16]byte{1}, start), nil)
	j.Close()
	c := config()
	c.BootID = "next"
	for _, now := range []time.Time{after(time.Hour), after(-time.Hour)} {
		image := lab.Value(os.ReadFile(path))(t)
		floor := mark.Add(30 * time.Second)
		if now.After(mark) {
			floor = now.Add(30 * time.Second)
		}
		other := filepath.Join(t.TempDir(), "journal")
		lab.Must(t, os.WriteFile(other, image, 0o600))
		j := mustOpen(t, other, c, now)
		admit(t, j, spent, start, ErrFloor)
		j.Close()
		j = mustOpen(t, other, c, now) // a restart keeps the floor
		if s := j.Status(); s.Live != 0 || s.Keys != 0 {
			t.Errorf("something is left: %+v", s)
		}
		wantFloor(t, j, now, floor, rebooted)
		j.Close()
	}
}

// A clock that was ahead during one boot does not lock anyone out in the next if nothing was admitted by it.
func TestClockAheadAtBoot(t *testing.T) {
	path := created(t, config())
	for n, now := range []time.Time{after(24 * time.Hour), after(time.Minute)} {
		c := config()
		c.BootID = []string{"second", "third"}[n]
		j := mustOpen(t, path, c, now)
		wantFloorStatus(t, j, now.Add(30*time.Second))
		j.Close()
	}
}

func wantFloorStatus(t *testing.T, j *Journal, floor time.Time) {
	t.Helper()
	if got := j.Status().Floor; !got.Equal(floor) {
		t.Errorf("floor: got %v, want %v", got, floor)
	}
}

func TestOtherMachine(t *testing.T) {
	path := created(t, config())
	c := config()
	c.MachineID = "other"
	j := mustOpen(t, path, c, after(time.Hour))
	wantFloor(t, j, after(time.Hour), after(time.Hour+30*time.Second), otherMachine)
}

// TestForeign: Foreign reports it before this machine starts the journal again, and after that until a reboot.
func TestForeign(t *testing.T) {
	path := created(t, config())
	here, next := config(), config()
	here.MachineID = "other"
	next.MachineID, next.BootID = here.MachineID, "next"
	want := func(when string, c Config, want bool) {
		t.Helper()
		before := read(t, path)
		if got, err := Foreign(path, c); got != want || err != nil {
			t.Errorf("%s: got %v and %v, want %v", when, got, err, want)
		}
		if !bytes.Equal(read(t, path), before) {
			t.Errorf("%s: the journal was changed", when)
		}
	}
	want("its own", config(), false)
	want("copied", here, true)
	mustOpen(t, path, here, start).Close()
	want("new again", here, true)
	mustOpen(t, path, next, start).Close()
	want("after a reboot", next, false)
	if got, err := Foreign(filepath.Join(t.TempDir(), "none"), here); got || err == nil {
		t.Errorf("no journal: got %v and %v", got, err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data := lab.Value(os.ReadFile(path))(t)
	return data
}

func TestMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := mustOpen(t, path, config(), start)
	wantFloor(t, j, start, after(30*time.Second), missing)
	j.Close()
	wantFloorStatus(t, mustOpen(t, path, config(), start), after(30*time.Second))
}

// It is unknown what was admitted before a journal was lost, so the next boot, with its clock set back, stays above the
// floor that covered it.
func TestLostMarkIsReplacedByTheFloor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	mustOpen(t, path, config(), start).Close()
	other, next := config(), config()
	other.MachineID, next.BootID = "other", "next"
	for _, from := range []Config{config(), other} {
		mustOpen(t, path, from, start).Close()
		floor := mustOpen(t, path, from, start).Status().Floor
		next.MachineID = from.MachineID
		wantFloorStatus(t, mustOpen(t, path, next, after(-time.Hour)), floor.Add(30*time.Second))
	}
}

// Whichever byte in use of the file changes, nothing is admitted again.
func TestDamage(t *testing.T) {
	j, d := fresh(t, config())
	spent := packet(1, 1, start)
	admit(t, j, spent, start, nil)
	wantErr(t, "Settle", j.Settle(1, spent.Request, []byte("granted")), nil)
	wantErr(t, "SetFloor", j.SetFloor([16]byte{1}, start), nil)
	mark := j.Status().HighWater
	for _, part := range [][2]int64{{0, headerSize}, {page, page + headerSize}, {offset(0), offset(3)}} {
		for at := part[0]; at < part[1]; at++ {
			bad := copyOf(d)
			bad.image[at] ^= 0x40
			j := reopen(t, bad, config(), start)
			admit(t, j, spent, start, ErrFloor)
			s := j.Status()
			if s.Reason != damaged.String() || s.Damaged != "aside" {
				t.Fatalf("byte %d: got %+v", at, s)
			}
			if at >= offset(0) && !s.Floor.Equal(mark.Add(30*time.Second)) {
				t.Fatalf("byte %d: got floor %v", at, s.Floor)
			}
			again := reopen(t, bad, config(), start) // it was repaired
			if s := again.Status(); s.Damaged != "" || s.Reason != damaged.String() || s.Live != 0 {
				t.Fatalf("byte %d: the second time: %+v", at, s)
			}
		}
	}
}

// resigned changes a byte of both headers and makes them verify again.
func resigned(b []byte, at int) []byte {
	for _, h := range [][]byte{b[:headerSize], b[page:][:headerSize]} {
		h[at]++
		sign(h, 0)
	}
	return b
}

func TestDamagedFiles(t *testing.T) {
	whole := func(t *testing.T) (string, []byte) {
		path := created(t, config())
		image := lab.Value(os.ReadFile(path))(t)
		return path, image
	}
	for name, change := range map[string]func(b []byte) []byte{
		"empty":           func(b []byte) []byte { return nil },
		"cut short":       func(b []byte) []byte { return b[:len(b)-slotSize] },
		"text":            func(b []byte) []byte { return []byte("not a journal\n") },
		"zeros":           func(b []byte) []byte { return make([]byte, len(b)) },
		"another version": func(b []byte) []byte { return resigned(b, 4+len(magic)) },
		"another magic":   func(b []byte) []byte { return resigned(b, 4) },
		"unknown kind": func(b []byte) []byte {
			b[offset(5)+4] = 9
			sign(b[offset(5):][:half], 0)
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, image := whole(t)
			image = change(image)
			lab.Must(t, os.WriteFile(path, image, 0o600))
			if name != "empty" { // the first one that is kept
				lab.Must(t, os.WriteFile(path+".damaged", []byte("kept earlier"), 0o600))
			}
			j := mustOpen(t, path, config(), after(time.Hour))
			wantFloor(t, j, after(time.Hour), after(time.Hour+30*time.Second), damaged)
			kept, err := os.ReadFile(j.Status().Damaged)
			if err != nil || !bytes.Equal(kept, image) {
				t.Errorf("kept %d bytes, %v; want %d", len(kept), err, len(image))
			}
			if fi, _ := os.Stat(path); fi.Size() != offset(64) {
				t.Errorf("the new journal has %d bytes", fi.Size())
			}
		})
	}
}

func TestOpenRefusesFiles(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"symbolic link": func(path string) error { return os.Symlink("elsewhere", path) },
		"directory":     func(path string) error { return os.Mkdir(path, 0o700) },
		"fifo":          func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"others write": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o602))
		},
		"the group does": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o620))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal")
			lab.Must(t, make(path))
			j, err := Open(path, config(), start)
			if err == nil {
				j.Close()
				t.Fatal("it was opened")
			}
			for of, says := range map[string]string{"others write": "chmod 600", "fifo": "not a regular file"} {
				if name == of && !strings.Contains(err.Error(), says) {
					t.Errorf("%v does not say %q", err, says)
				}
			}
		})
	}
}
