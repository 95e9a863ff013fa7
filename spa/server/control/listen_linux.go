package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listener is the server's end of the socket. It is opened with root's rights and served later.
type Listener struct {
	net  *net.UnixListener
	dir  *os.File
	path string // for messages
	name string // in dir; empty: SocketName
	mode uint32 // zero: 0600
}

// Listen creates the socket in the state directory, with mode 0600 and its owner. A stale socket of a killed server is
// replaced: the caller has the directory's lock. Anything else with its name is left alone. If this user may not make
// files in the state directory, the socket is in [Beside].
func Listen(state string, owner int) (*Listener, error) {
	l, err := listenIn(state, state, owner)
	if errors.Is(err, fs.ErrPermission) {
		if there, failed := listenIn(state, filepath.Join(state, Beside), owner); failed == nil {
			return there, nil
		}
	}
	return l, err
}

func listenIn(state, path string, owner int) (*Listener, error) {
	l := &Listener{path: filepath.Join(path, SocketName)}
	dir, err := openIn(state, path)
	if err != nil {
		return nil, err
	}
	l.dir = dir
	if err := l.open(owner); err != nil {
		return nil, errors.Join(fmt.Errorf("making %s: %w", l.path, err), l.Close())
	}
	return l, nil
}

// openDir opens a directory for access to its files, even without the right to list it.
func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_PATH|syscall.O_DIRECTORY, 0)
}

// openIn is openDir for the state directory, or for a directory in it, which must not be a link: the server's user may
// own the state directory, and must not choose where root looks.
func openIn(state, path string) (*os.File, error) {
	if path == state {
		return openDir(state)
	}
	return os.OpenFile(path, unix.O_PATH|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
}

func (l *Listener) file() string { return cmp.Or(l.name, SocketName) }

// short returns a name for the socket in its open directory. It is short enough for a socket address (107 bytes),
// however long the directory's path, and stays in this directory, whatever its path leads to by now.
func (l *Listener) short() string { return fmt.Sprintf("/proc/self/fd/%d/%s", l.dir.Fd(), l.file()) }

func (l *Listener) open(owner int) error {
	if err := l.unlink(); err != nil {
		return err
	}
	if err := l.bind(); err != nil {
		return err
	}
	if owner == os.Geteuid() {
		return nil
	}
	return l.give(owner)
}

// bind gives the socket its name.
func (l *Listener) bind() error {
	private := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		// Set before the socket has a name (see unix_bind in the kernel), so that others can never connect.
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), cmp.Or(l.mode, 0o600)) }), err)
	}}
	listener, err := private.Listen(context.Background(), "unix", l.short())
	if err != nil {
		return withoutCall(err)
	}
	l.net = listener.(*net.UnixListener)
	l.net.SetUnlinkOnClose(false) // see Close
	return nil
}

// give gives the socket to its owner.
func (l *Listener) give(owner int) error { return l.giveTo(owner, -1) }

// giveTo gives the socket to a user and a group. The directory may belong to that user, who must not choose what root
// gives away: see openSocket.
func (l *Listener) giveTo(owner, group int) error {
	socket, err := openSocket(l.dir, l.file())
	if err != nil {
		return err
	}
	defer socket.Close()
	if l.mode != 0 { // what the umask took away; root may lack the right to change it once it is another user's
		if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", socket.Fd()), os.FileMode(l.mode)); err != nil {
			return err
		}
	}
	info, err := socket.Stat()
	if err != nil {
		return err
	}
	if is := info.Sys().(*syscall.Stat_t); int(is.Uid) == owner && (group < 0 || int(is.Gid) == group) {
		return nil // in a directory with the set-group-id bit; the unit forbids the call
	}
	return unix.Fchownat(int(socket.Fd()), "", owner, group, unix.AT_EMPTY_PATH)
}

var errNoSocket = errors.New("something else has this name, or the socket has other names (hard links): move it away")

// openSocket opens the socket of a directory with O_PATH, following no link. It refuses a hard link, which can be
// another program's socket.
func openSocket(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), name)
	var stat unix.Stat_t
	err = unix.Fstat(fd, &stat)
	if err == nil && (stat.Mode&unix.S_IFMT != unix.S_IFSOCK || stat.Nlink > 1) {
		err = errNoSocket
	}
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	return socket, nil
}

// unlink removes a stale socket.
func (l *Listener) unlink() error {
	var stat unix.Stat_t
	err := unix.Fstatat(int(l.dir.Fd()), l.file(), &stat, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errNoSocket
	}
	return unix.Unlinkat(int(l.dir.Fd()), l.file(), 0)
}

// Close stops listening and removes the socket, if the directory permits this user: a server that dropped its
// privileges leaves it there, unserved.
func (l *Listener) Close() error {
	var errs []error
	if l.net != nil {
		if err := l.net.Close(); !errors.Is(err, net.ErrClosed) { // Serve has
			errs = append(errs, err)
		}
		if err := l.unlink(); !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, l.dir.Close())
	return errors.Join(errs...)
}

// withoutCall returns the error number of a system call, without the call's name and arguments.
func withoutCall(err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number
	}
	return err
}

// Peer returns the process at the other end of a Unix socket, and its user.
func Peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd),
			unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return nil, err
	}
	return cred, nil
}
