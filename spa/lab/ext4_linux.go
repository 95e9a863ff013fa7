package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Disk is a small ext4 file system of its own.
type Disk struct {
	Dir   string // where it is mounted
	image string
}

// NewDisk makes a disk of a size, as truncate takes it ("2M"). It is gone when the test ends.
func NewDisk(t testing.TB, size string) *Disk {
	t.Helper()
	NeedRoot(t)
	d := &Disk{Dir: t.TempDir(), image: filepath.Join(t.TempDir(), "image")}
	make := exec.Command("/bin/sh", "-ec", `truncate -s "$1" "$2"; /usr/sbin/mkfs.ext4 -q "$2"`, "sh", size, d.image)
	if out, err := make.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	d.mount(t)
	t.Cleanup(func() { Must(t, unix.Unmount(d.Dir, unix.MNT_DETACH)) })
	return d
}

func (d *Disk) mount(t testing.TB) {
	t.Helper()
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.Dir).CombinedOutput(); err != nil {
		t.Logf("mounting: %v\n%s", err, out)
		KernelLacks(t, "loop devices and ext4")
	}
}

// CutPower loses what has not been synced, and mounts the disk again. No file on it may be open.
func (d *Disk) CutPower(t testing.TB) {
	t.Helper()
	const (
		shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN, include/uapi/linux/ext4.h
		noLogFlush = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	)
	dir := Value(os.Open(d.Dir))(t)
	flags := uint32(noLogFlush)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), shutdown, uintptr(unsafe.Pointer(&flags)))
	Must(t, dir.Close())
	if errno != 0 {
		t.Fatalf("shutting ext4 down: %v", errno)
	}
	Must(t, unix.Unmount(d.Dir, 0))
	d.mount(t)
}
