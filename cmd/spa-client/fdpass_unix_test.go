//go:build unix

package main

import (
	"io"
	"net"
	"os"
	"testing"

	"sallyport/spa/lab"

	"golang.org/x/sys/unix"
)

// TestPassOn: the receiver of a connection can use it in blocking mode after this program has exited.
func TestPassOn(t *testing.T) {
	ends := lab.Value(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0))(t)
	ours, theirs := os.NewFile(uintptr(ends[0]), "ours"), os.NewFile(uintptr(ends[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	listener := lab.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	conn := lab.Value(net.Dial("tcp", listener.Addr().String()))(t)
	lab.Must(t, passOn(ours, conn))
	conn.Close()
	passed := received(t, theirs)
	defer passed.Close()
	if flags, err := unix.FcntlInt(passed.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("flags %#x, %v: does not block", flags, err)
	}
	other := lab.Value(listener.Accept())(t)
	io.WriteString(other, "hello")
	other.Close()
	if got, err := io.ReadAll(passed); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

// received returns the file that came over a socket, with one byte as OpenSSH reads it.
func received(t *testing.T, socket *os.File) *os.File {
	t.Helper()
	data, control := make([]byte, 16), make([]byte, 64)
	n, m, _, _, err := unix.Recvmsg(int(socket.Fd()), data, control, 0)
	if err != nil || n != 1 {
		t.Fatalf("got %d bytes, %v", n, err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:m])
	if err != nil || len(messages) != 1 {
		t.Fatalf("got %d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("got %v, %v", fds, err)
	}
	return os.NewFile(uintptr(fds[0]), "passed")
}
