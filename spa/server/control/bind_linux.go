package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrInUse is returned by Bind if a program answers at the socket.
var ErrInUse = errors.New("another program answers at this socket")

// Bind creates a Unix socket with mode 0660 for a user and for the group of its directory: the directory's owner
// chooses by that group who may connect. It replaces a socket that no process serves if it belongs to root or to the
// user, and leaves anything else of its name alone.
func Bind(path string, owner int) (*Listener, error) {
	l := &Listener{path: path, name: filepath.Base(path), mode: 0o660}
	dir, err := openDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("making %s: %w", path, err)
	}
	l.dir = dir
	group, err := groupOf(dir)
	for _, step := range []func() error{
		func() error { return err }, func() error { return l.stale(owner) }, l.bind,
		func() error { return l.giveTo(owner, group) },
	} {
		if err := step(); err != nil {
			return nil, errors.Join(fmt.Errorf("making %s: %w", path, err), l.Close())
		}
	}
	return l, nil
}

// Net returns the listener.
func (l *Listener) Net() net.Listener { return l.net }

func groupOf(dir *os.File) (int, error) {
	info, err := dir.Stat()
	if err != nil {
		return 0, err
	}
	return int(info.Sys().(*syscall.Stat_t).Gid), nil
}

// errOthers means that another user's socket has the name.
var errOthers = errors.New("a socket of another user has this name: move it away")

// stale removes the socket of a server that was killed.
func (l *Listener) stale(owner int) error {
	socket, err := openSocket(l.dir, l.file())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer socket.Close()
	info, err := socket.Stat()
	if err != nil {
		return err
	}
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	ours := uid == 0 || uid == owner || uid == os.Geteuid()
	refused := connects(socket)
	if errors.Is(refused, fs.ErrPermission) && ours { // root may lack the right to other users' files, as in the unit
		if err := unix.Fchownat(int(socket.Fd()), "", os.Geteuid(), -1, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
		refused = connects(socket)
	}
	switch {
	case errors.Is(refused, unix.ECONNREFUSED) && ours:
		return l.unlink()
	case errors.Is(refused, unix.ECONNREFUSED), errors.Is(refused, fs.ErrPermission):
		return errOthers
	}
	return ErrInUse // also if a program listens and does not accept: EAGAIN
}

// connects tries to connect to a socket that is open with O_PATH.
func connects(socket *os.File) error {
	name := fmt.Sprintf("/proc/self/fd/%d", socket.Fd())
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: name})
	if err != nil {
		return withoutCall(err)
	}
	return conn.Close()
}
