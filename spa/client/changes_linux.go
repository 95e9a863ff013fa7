package client

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Changes listens to the kernel's routing socket (rtnetlink(7)): links, addresses, routes.
func (system) Changes() (<-chan struct{}, func()) {
	socket, err := routing()
	if err != nil {
		return polled()
	}
	changes := make(chan struct{}, 1)
	var listening sync.WaitGroup
	listening.Go(func() { listen(socket, changes) })
	return changes, func() {
		socket.Close() // wakes the reader
		listening.Wait()
	}
}

// routing opens the routing socket.
func routing() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE |
		unix.RTMGRP_IPV6_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

// listen reports each message, or several at once. The contents do not matter: the receiver looks up what has changed.
// Lost messages (ENOBUFS) count as a change too.
func listen(socket *os.File, changes chan<- struct{}) {
	buf := make([]byte, 1<<16)
	for {
		_, err := socket.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		select {
		case changes <- struct{}{}:
		default:
		}
	}
}
