package place

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// TestMany: what Many reads is what Read returns, and it reads nothing that Read refuses.
func TestMany(t *testing.T) {
	dir := t.TempDir()
	root := lab.Value(os.OpenRoot(dir))(t)
	defer root.Close()
	d := Folder{Path: dir, Root: root}
	const small, full = 100, 4096
	write := func(name string, size int) error {
		return os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte("x"), size), 0o600)
	}
	lab.Must(t, errors.Join(write("good", small), write("empty", 0), write("full", full), write("nearly-full", full-1),
		os.Symlink("good", filepath.Join(dir, "link")), os.Link(filepath.Join(dir, "good"), filepath.Join(dir, "hard")),
		os.Mkdir(filepath.Join(dir, "directory"), 0o700), syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600)))
	files := []string{"good", "empty", "full", "nearly-full", "link", "hard", "directory", "pipe", "missing"}
	for _, mode := range []os.FileMode{0o400, 0o440, 0o600, 0o640, 0o644, 0o660, 0o602, 0o601, 0o650, 0o000} {
		for _, gid := range []int{0, 54321} {
			for _, uid := range []int{0, 54321} {
				name := fmt.Sprintf("mode-%o-%d-%d", mode, uid, gid)
				lab.Must(t, errors.Join(write(name, small), os.Chmod(filepath.Join(dir, name), mode)))
				if os.Geteuid() == 0 {
					lab.Must(t, os.Lchown(filepath.Join(dir, name), uid, gid))
				}
				files = append(files, name)
			}
		}
	}
	var owners [][2]int
	if os.Geteuid() == 0 {
		owners = [][2]int{{0, 54321}, {54321, 0}, {54321, 54321}}
	}
	for _, owner := range append([][2]int{{os.Geteuid(), os.Getegid()}}, owners...) {
		lab.Must(t, os.Chown(dir, owner[0], owner[1]))
		many, read := d.ReadMany(), 0
		for _, file := range files {
			var buf [full]byte
			n, ok := many.Read(file, buf[:])
			want, err := d.Read(file, 2*full, Served)
			switch {
			case ok && (err != nil || !bytes.Equal(buf[:n], want)):
				t.Errorf("directory of %v: %s was read (%d bytes), although: %v", owner, file, n, err)
			case ok:
				read++
			case file == "good" && err == nil:
				t.Errorf("directory of %v: %s was not read", owner, file)
			}
		}
		if read < 2 {
			t.Errorf("directory of %v: read only %d", owner, read)
		}
		many.Close()
	}
}
