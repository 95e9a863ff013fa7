package setup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
)

// ErrRunning is returned if another server is running. Two servers would each have half of the replay memory, and
// replace each other's guard.
var ErrRunning = errors.New("spa-server is already running")

// ErrNoState is returned if the state directory does not exist. [MakeState] returns the command that makes it.
var ErrNoState = errors.New("no such directory")

// namespaceLock is a name in the abstract namespace of Unix sockets, which belongs to the network
// namespace, as the firewall does (unix(7)).
const namespaceLock = "@spa-server"

// How long a server that is about to stop (after a teardown, or for a restart) may take.
const (
	lockWait  = 2 * time.Second
	lockEvery = 20 * time.Millisecond
)

// Lock keeps other servers off the state directory and the network namespace until it is closed. It waits a moment for
// a server that is just stopping.
func Lock(state string) (io.Closer, error) {
	for waited := time.Duration(0); ; waited += lockEvery {
		l, err := tryLock(state)
		if !errors.Is(err, ErrRunning) || waited >= lockWait {
			return l, err
		}
		time.Sleep(lockEvery)
	}
}

func tryLock(state string) (io.Closer, error) {
	file, err := lockFile(state)
	if err != nil {
		return nil, err
	}
	name, err := lockNamespace()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return lock{file, name}, nil
}

// lockFile locks the state directory.
func lockFile(state string) (*os.File, error) {
	file, err := openLockFile(filepath.Join(state, LockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("state directory %s: %w", state, ErrNoState)
	}
	if err != nil {
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %s: %w", state, ErrRunning)
		}
		return nil, fmt.Errorf("locking %s: %w", file.Name(), err)
	}
	return file, nil
}

type lock struct {
	file *os.File
	name io.Closer
}

func (l lock) Close() error { return errors.Join(l.name.Close(), l.file.Close()) }

// openLockFile opens the file, or creates it for the owner of its directory. That user must not choose what root
// creates, opens or gives away: it follows no link, and gives away only a file that it created.
func openLockFile(path string) (*os.File, error) {
	const flags = os.O_RDWR | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	file, err := os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, 0o600)
	fresh := err == nil
	if errors.Is(err, fs.ErrExist) {
		file, err = os.OpenFile(path, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	if fresh {
		err = giveToOwner(file)
	} else {
		err = checkPlain(file)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// openPlainFile opens a file for reading that another user may have put there.
func openPlainFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := checkPlain(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// giveToOwner gives a new file to the owner of its directory.
func giveToOwner(file *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	dir, err := os.Stat(filepath.Dir(file.Name()))
	if err != nil {
		return err
	}
	owner := dir.Sys().(*syscall.Stat_t)
	if err := file.Chown(int(owner.Uid), -1); !errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

// checkPlain refuses anything but a regular file, and a hard link, which can be another user's file.
func checkPlain(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Nlink > 1 {
		return fmt.Errorf("%s is not a plain file, or has other names (hard links): remove it", file.Name())
	}
	return nil
}

// lockNamespace takes the name, unless a server has it. If something else has taken the name (any local user may), the
// server starts anyway, with only the state directory's lock.
func lockNamespace() (io.Closer, error) {
	addr := &net.UnixAddr{Net: "unix", Name: namespaceLock}
	name, err := net.ListenUnix("unix", addr)
	if err == nil {
		go drainBacklog(name)
		return name, nil
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("locking the network namespace: %w", err)
	}
	if cred, err := holder(addr); err == nil && servesAs(cred.Uid) {
		return nil, fmt.Errorf("this network namespace: %w", ErrRunning)
	}
	return nopCloser{}, nil // it belongs to another user, or does not listen: it is no server of ours
}

// drainBacklog accepts and closes connections until the name is released: peers connect only to read our credentials,
// and must never find the queue full.
func drainBacklog(name *net.UnixListener) {
	for {
		conn, err := name.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			conn.Close()
		}
	}
}

// holder returns the process that listens on addr, and its user.
func holder(addr *net.UnixAddr) (*unix.Ucred, error) {
	conn, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return control.Peer(conn)
}

// servesAs reports whether a server may run as this user: root, this process's user, the system user, or the unnamed
// one.
func servesAs(uid uint32) bool {
	if uid == 0 || uid == sandbox.Unnamed || int(uid) == os.Geteuid() {
		return true
	}
	account, err := user.Lookup(SystemUser)
	return err == nil && account.Uid == strconv.Itoa(int(uid))
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// Running reports whether a server is running in this network namespace, with any directory.
func Running() bool {
	cred, err := holder(&net.UnixAddr{Net: "unix", Name: namespaceLock})
	return err == nil && servesAs(cred.Uid)
}

// RunningState returns the state directory of the server that is running in this network namespace with the settings of
// dir, if server.toml names another one by now: the server has its lock file there open. Only root may look. False:
// none was found.
func RunningState(dir string) (string, bool) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", false
	}
	cred, err := holder(&net.UnixAddr{Net: "unix", Name: namespaceLock})
	if err != nil || !servesAs(cred.Uid) {
		return "", false
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cred.Pid))
	if err != nil {
		return "", false
	}
	for _, file := range files {
		path, err := os.Readlink(file)
		if err != nil || filepath.Base(path) != LockFile {
			continue
		}
		if _, err := lastWriting(filepath.Dir(path), dir); err == nil {
			return filepath.Dir(path), true
		}
	}
	return "", false
}
