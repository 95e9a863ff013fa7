//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// tcpPair returns a connection and its other end.
func tcpPair(t *testing.T) (ours net.Conn, theirs *net.TCPConn) {
	t.Helper()
	listener := lab.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	ours = lab.Value(net.Dial("tcp", listener.Addr().String()))(t)
	conn := lab.Value(listener.Accept())(t)
	t.Cleanup(func() {
		ours.Close()
		conn.Close()
	})
	return ours, conn.(*net.TCPConn)
}

// TestJoinHalfCloses: after one side has closed its half, it still receives the other's data, in both directions.
func TestJoinHalfCloses(t *testing.T) {
	ours, theirs := tcpPair(t)
	in, say := io.Pipe()
	hear, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- join(t.Context(), ours, in, out) }()
	io.WriteString(theirs, "the gateway's last")
	theirs.CloseWrite()
	if got, err := io.ReadAll(hear); err != nil || string(got) != "the gateway's last" {
		t.Errorf("the output: got %q, %v", got, err)
	}
	io.WriteString(say, "and still ours")
	say.Close()
	if got, err := io.ReadAll(theirs); err != nil || string(got) != "and still ours" {
		t.Errorf("the gateway got %q, %v", got, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestJoinIsInterrupted(t *testing.T) {
	ours, _ := tcpPair(t)
	in, _ := io.Pipe()
	_, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := join(ctx, ours, in, out); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestJoinWithoutReader: it is no failure if the reader of the output exits, as ssh does when it is killed. A full disk
// is one, but not the gateway's.
func TestJoinWithoutReader(t *testing.T) {
	for name, test := range map[string]struct {
		open func() (*os.File, error)
		want string
	}{
		"left": {func() (*os.File, error) {
			r, w, err := os.Pipe()
			return w, errors.Join(err, r.Close())
		}, ""},
		"full": {func() (*os.File, error) { return os.OpenFile("/dev/full", os.O_WRONLY, 0) },
			"writing to standard output: "},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat("/dev/full"); err != nil && name == "full" {
				return // not on this system
			}
			out, err := test.open()
			lab.Must(t, err)
			defer out.Close()
			ours, theirs := tcpPair(t)
			in, _ := io.Pipe() // sends nothing, and does not end
			io.WriteString(theirs, "something")
			theirs.Close()
			err = join(t.Context(), ours, in, out)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// breaking is a connection whose sending half fails with an error.
type breaking struct {
	net.Conn
	err error
}

func (b breaking) Write([]byte) (int, error) { return 0, b.err }

// TestJoinEndsWithTheGateway: it is no failure if the gateway closes the connection; a lost network is one.
func TestJoinEndsWithTheGateway(t *testing.T) {
	if err := send(breaking{err: &net.OpError{Op: "write", Err: syscall.EPIPE}},
		bytes.NewReader([]byte("x"))); err != nil {
		t.Errorf("closed: got %v", err)
	}
	down := errors.New("network is down")
	if err := send(breaking{err: down}, bytes.NewReader([]byte("x"))); !errors.Is(err, down) {
		t.Errorf("down: got %v", err)
	}
	ours, theirs := tcpPair(t)
	theirs.SetLinger(0)
	theirs.Close() // a reset
	_, out := io.Pipe()
	if err := receive(out, ours); err == nil {
		t.Error("a reset: no error")
	}
}
