package replay

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// The test binary is also the process that is killed, and the one on a full disk.
const (
	roleEnv = "REPLAY_TEST_ROLE"
	pathEnv = "REPLAY_TEST_PATH"
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "load":
		err = loadUntilKilled(os.Getenv(pathEnv))
	case "full disk":
		err = onFullDisk(os.Getenv(pathEnv))
	case "plain disk":
		err = onPlainDisk(os.Getenv(pathEnv))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(t *testing.T, role, path string) *exec.Cmd {
	t.Helper()
	exe := lab.Value(os.Executable())(t)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, pathEnv+"="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

func killConfig() Config {
	return Config{Window: 30 * time.Second, Room: 1024}
}

// killPacket is packet n of a child's load: the stamps advance so that nonces are forgotten continuously.
func killPacket(n int) (Entry, time.Time) {
	now := after(time.Duration(n) * 100 * time.Millisecond)
	return packet(uint64(n%40), n, now), now
}

// loadUntilKilled admits packets, and prints each after it is admitted.
func loadUntilKilled(path string) error {
	first := 0
	if _, err := fmt.Scan(&first); err != nil {
		return err
	}
	_, now := killPacket(first)
	j, err := Open(path, killConfig(), now)
	if err != nil {
		return err
	}
	for n := first; ; n++ {
		e, now := killPacket(n)
		if _, err := j.Admit(e, now); err != nil {
			return fmt.Errorf("packet %d: %w", n, err)
		}
		if err := j.Settle(e.Key, e.Request, []byte("granted")); err != nil {
			return err
		}
		if _, err := fmt.Println(n); err != nil {
			return err
		}
	}
}

// A process killed at any moment leaves a journal in which every spent nonce is still spent, and which refuses nothing
// fresh.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	lab.Must(t, Create(path, killConfig(), start))
	rng := rand.New(rand.NewPCG(5, 6))
	next := 0
	between := map[int]bool{} // possibly admitted when the process was killed
	for range 25 {
		last := killAfter(t, path, next, 1+rng.IntN(3000), time.Duration(rng.IntN(300))*time.Microsecond)
		_, now := killPacket(last)
		j := mustOpen(t, path, killConfig(), now)
		if s := j.Status(); s.Reason != "" || !s.Floor.IsZero() {
			t.Fatalf("after %d packets: %+v", last, s)
		}
		for n := max(0, last-2000); n <= last; n++ {
			e, now := killPacket(n)
			if _, err := j.Admit(e, now); err == nil && !between[n] {
				t.Fatalf("packet %d of %d is admitted again", n, last)
			}
		}
		j.Close()
		between[last+1] = true
		next = last + 2
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != offset(1024) {
		t.Errorf("the journal has %d bytes, %v", fi.Size(), err)
	}
}

// killAfter lets a child admit some packets and kills it a moment later. It returns the last packet that it printed.
func killAfter(t *testing.T, path string, first, packets int, moment time.Duration) int {
	t.Helper()
	cmd := child(t, "load", path)
	in := lab.Value(cmd.StdinPipe())(t)
	out := lab.Value(cmd.StdoutPipe())(t)
	lab.Must(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	fmt.Fprintln(in, first)
	told := bufio.NewReader(out)
	last := first - 1
	read := func() error { _, err := fmt.Fscanln(told, &last); return err }
	for range packets {
		if err := read(); err != nil {
			t.Fatalf("the child ended: %v", err)
		}
	}
	for begin := time.Now(); time.Since(begin) < moment; { // too short to sleep
	}
	lab.Must(t, cmd.Process.Kill())
	for read() == nil {
	}
	return last
}

// A full disk locks nobody out; packets without room are refused with a clear error, and nothing is forgotten.
func TestFullDisk(t *testing.T) {
	runMounting(t, "full disk")
}

// A file system that cannot reserve space gets zeros.
func TestPlainDisk(t *testing.T) {
	runMounting(t, "plain disk")
}

func runMounting(t *testing.T, role string) {
	t.Helper()
	lab.NeedOwnRoot(t)
	cmd := child(t, role, t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS}
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v (needs user namespaces: sysctl kernel.unprivileged_userns_clone=1)", err)
	}
}

func onFullDisk(dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		return fmt.Errorf("mounting a tiny disk: %w", err)
	}
	path := filepath.Join(dir, "journal")
	c := config()
	c.Room = 256
	if err := Create(path, c, start); err != nil {
		return err
	}
	if err := lab.FillDisk(filepath.Join(dir, "other")); err != nil {
		return err
	}
	if err := steadyOnFullDisk(path, c); err != nil {
		return err
	}
	if err := untilNoRoom(path, c); err != nil {
		return err
	}
	return damagedOnFullDisk(path, c)
}

// onPlainDisk uses ramfs, which has no fallocate.
func onPlainDisk(dir string) error {
	if err := syscall.Mount("ramfs", dir, "ramfs", 0, ""); err != nil {
		return fmt.Errorf("mounting a plain disk: %w", err)
	}
	path := filepath.Join(dir, "journal")
	c := config()
	c.Room = 50
	if err := Create(path, c, start); err != nil {
		return err
	}
	j, err := Open(path, c, start)
	if err != nil {
		return err
	}
	defer j.Close()
	for n := range 200 {
		if _, err := j.Admit(packet(1, n, start), start); err != nil {
			return err
		}
	}
	if s := j.Status(); s.Live != 200 || s.Room != 50+growth {
		return fmt.Errorf("got %+v", s)
	}
	return nil
}

// steadyOnFullDisk admits packets for an hour, over restarts and a reboot.
func steadyOnFullDisk(path string, c Config) error {
	for boot := range 4 {
		begin := after(time.Duration(boot) * time.Hour)
		c.BootID = []string{"boot", "boot", "next", "next"}[boot]
		j, err := Open(path, c, begin)
		if err != nil {
			return err
		}
		for n := range 3000 {
			now := begin.Add(time.Minute + time.Duration(n)*time.Second)
			e := packet(uint64(n%300), boot*10_000+n, now)
			if _, err := j.Admit(e, now); err != nil {
				return fmt.Errorf("packet %d: %w", n, err)
			}
		}
		if err := j.Close(); err != nil {
			return err
		}
	}
	return nil
}

// untilNoRoom admits packets at once until there is no room.
func untilNoRoom(path string, c Config) error {
	now := after(10 * time.Hour)
	c.BootID = "next"
	j, err := Open(path, c, now)
	if err != nil {
		return err
	}
	defer j.Close()
	n := 0
	for ; err == nil; n++ {
		_, err = j.Admit(packet(uint64(n%300), 100_000+n, now), now)
	}
	if s := j.Status(); s.Records != 256 || s.Live < 200 {
		return fmt.Errorf("refused with %+v: %w", s, err)
	}
	for i := range n {
		if _, err := j.Admit(packet(uint64(i%300), 100_000+i, now), now); err == nil {
			return fmt.Errorf("packet %d was overwritten", i)
		}
	}
	return nil
}

// damagedOnFullDisk starts a damaged journal again in place, without room to keep a copy of it.
func damagedOnFullDisk(path string, c Config) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damage"), offset(9)); err != nil {
		return err
	}
	c.BootID = "next"
	now := after(20 * time.Hour)
	j, err := Open(path, c, now)
	if err != nil {
		return err
	}
	defer j.Close()
	if s := j.Status(); s.Reason != damaged.String() || s.Damaged == path+".damaged" || s.Records != 0 {
		return fmt.Errorf("got %+v", s)
	}
	if _, err := os.Stat(path + ".damaged"); err == nil {
		return fmt.Errorf("a part of the damaged journal is left")
	}
	later := now.Add(time.Minute)
	_, err = j.Admit(packet(1, 1, later), later)
	return err
}
