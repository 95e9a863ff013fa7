//go:build unix

package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"sallyport/cmd/internal/cli"
)

// passOn passes a connection to the process at the other end of a socket (SCM_RIGHTS, with one byte to carry it, as
// OpenSSH's ProxyUseFdpass expects).
func passOn(socket *os.File, conn net.Conn) error {
	file, err := conn.(*net.TCPConn).File()
	if err != nil {
		return fmt.Errorf("handing the connection over: %w", err)
	}
	defer file.Close()
	fd := int(file.Fd()) // sets it to blocking mode, as the receiver expects
	for {
		err = unix.Sendmsg(int(socket.Fd()), []byte{0}, unix.UnixRights(fd), nil, 0)
		if err != unix.EINTR {
			break
		}
	}
	if errors.Is(err, unix.ENOTSOCK) {
		return cli.Fail(errors.New("standard output is not a socket, so nothing there can take the connection over"),
			"--fdpass is for ssh's ProxyCommand together with ProxyUseFdpass yes")
	}
	if err != nil {
		return fmt.Errorf("handing the connection over: %w", err)
	}
	return nil
}
