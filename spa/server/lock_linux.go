package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrRunning is returned where another server works already. Two servers would each have half of
// the replay memory, and replace each other's guard.
var ErrRunning = errors.New("another spa-server works here already")

// namespaceLock is a name in the abstract namespace of Unix sockets, which belongs to the network
// namespace, as the firewall does (unix(7)).
const namespaceLock = "@spa-server"

// Lock keeps other servers off the state directory and off the network namespace until it is closed.
func Lock(state string) (io.Closer, error) {
	file, err := os.OpenFile(filepath.Join(state, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("server: locking the state directory: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("server: state directory %s: %w", state, ErrRunning)
		}
		return nil, fmt.Errorf("server: locking %s: %w", file.Name(), err)
	}
	name, err := lockNamespace()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return lock{file, name}, nil
}

// lockNamespace takes the name, unless a server has it. A name that somebody else has taken (any
// local user may) keeps no server from starting: then the state directory's lock alone has to do.
func lockNamespace() (io.Closer, error) {
	addr := &net.UnixAddr{Net: "unix", Name: namespaceLock}
	name, err := net.ListenUnix("unix", addr)
	if err == nil {
		return name, nil
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("server: locking the network namespace: %w", err)
	}
	if uid, err := holder(addr); err == nil && uid != 0 {
		return nopCloser{}, nil
	}
	return nil, fmt.Errorf("server: this network namespace: %w", ErrRunning)
}

// holder returns the user that listens on addr. A server does so as root, before it drops privileges.
func holder(addr *net.UnixAddr) (uint32, error) {
	conn, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

type lock struct {
	file *os.File
	name io.Closer
}

func (l lock) Close() error { return errors.Join(l.name.Close(), l.file.Close()) }
