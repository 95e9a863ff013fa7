//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
)

// tcpPair is a connection and its other end.
func tcpPair(t *testing.T) (ours net.Conn, theirs *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ours, err = net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ours.Close()
		conn.Close()
	})
	return ours, conn.(*net.TCPConn)
}

// Whoever has said his last may still listen, on either side.
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

// breaking is a connection whose sending half has ended with an error.
type breaking struct {
	net.Conn
	err error
}

func (b breaking) Write([]byte) (int, error) { return 0, b.err }

// That the gateway has closed the connection is no failure; that the network has gone is.
func TestJoinEndsWithTheGateway(t *testing.T) {
	if err := send(breaking{err: &net.OpError{Op: "write", Err: syscall.EPIPE}}, bytes.NewReader([]byte("x"))); err != nil {
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
