package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// serving answers every request with a status, until the test is over.
func serving(t *testing.T, handle Handler) (dir string) {
	t.Helper()
	dir = t.TempDir()
	l := lab.Value(Listen(dir, os.Geteuid()))(t)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Serve(ctx, handle) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, l.Close()); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func statusOf(_ context.Context, _ Request, a *Answer) error {
	return a.Send(Reply{Status: &Status{Name: "gw"}})
}

func connect(t *testing.T, dir string) net.Conn {
	t.Helper()
	conn := lab.Value(net.Dial("unix", filepath.Join(dir, SocketName)))(t)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestAsk: an answer, a refusal with its hint, and a server that ends early.
func TestAsk(t *testing.T) {
	ending, end := context.WithCancel(context.Background())
	dir := serving(t, func(ctx context.Context, r Request, a *Answer) error {
		switch r.Command {
		case CommandStatus:
			return statusOf(ctx, r, a)
		case CommandRevoke:
			return &Denied{Text: "no " + r.Client, Hint: "do this"}
		}
		end()
		<-ctx.Done()
		return ctx.Err()
	})
	ask := func(ctx context.Context, r Request) (got []Reply, err error) {
		c := lab.Value(Dial(dir))(t)
		defer c.Close()
		err = c.Ask(ctx, r, func(r Reply) error { got = append(got, r); return nil })
		return got, err
	}
	if got, err := ask(t.Context(), Request{Command: CommandStatus}); err != nil || len(got) != 1 ||
		got[0].Status.Name != "gw" {
		t.Errorf("got %+v, %v", got, err)
	}
	var denied *Denied
	if _, err := ask(t.Context(), Request{Command: CommandRevoke, Client: "bob"}); !errors.As(err, &denied) ||
		denied.Text != "no bob" || denied.Hint != "do this" {
		t.Errorf("got %v", err)
	}
	if _, err := ask(ending, Request{Command: CommandWatch}); !errors.Is(err, context.Canceled) {
		t.Errorf("a client that is interrupted: got %v", err)
	}
}

// TestGreatReply: a client can read a reload that names a million clients.
func TestGreatReply(t *testing.T) {
	dir := serving(t, func(_ context.Context, _ Request, a *Answer) error {
		return a.Send(Reply{Reloaded: &Reloaded{Added: []string{strings.Repeat("x", 8<<20)}}})
	})
	c := lab.Value(Dial(dir))(t)
	defer c.Close()
	if err := c.Ask(t.Context(), Request{Command: CommandReload}, func(Reply) error { return nil }); err != nil {
		t.Error(err)
	}
}

// TestNobody: Dial's error if there is no server, or if the client may not use it.
func TestNobody(t *testing.T) {
	dir := t.TempDir()
	if _, err := Dial(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no socket: got %v", err)
	}
	if _, err := Dial(filepath.Join(dir, "missing")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no directory: got %v", err)
	}
	if _, err := Dial("control_test.go"); err == nil || errors.Is(err, ErrNotRunning) || errors.Is(err, ErrRefused) ||
		strings.Count(err.Error(), "control_test.go") != 1 {
		t.Errorf("no directory there: got %v", err)
	}
	stale := lab.Value(net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, SocketName)}))(t)
	stale.SetUnlinkOnClose(false)
	stale.Close()
	if _, err := Dial(dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a stale socket: got %v", err)
	}
}

// TestEndlessRequest: input that cannot be a request is not read further.
func TestEndlessRequest(t *testing.T) {
	conn := connect(t, serving(t, statusOf))
	conn.SetDeadline(time.Now().Add(askWithin + lab.Patience))
	if n, err := io.Copy(conn, io.LimitReader(endless{}, 16<<20)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes were taken: %v", n, err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	copy(p, bytes.Repeat([]byte("x"), len(p)))
	return len(p), nil
}

// TestTooMany: the number of clients is limited, and a place is free again once one leaves.
func TestTooMany(t *testing.T) {
	dir := serving(t, func(ctx context.Context, r Request, a *Answer) error {
		if r.Command == CommandWatch {
			<-ctx.Done()
			return nil
		}
		return statusOf(ctx, r, a)
	})
	var conns []net.Conn
	for range maxConns {
		conn := connect(t, dir)
		conn.Write([]byte(`{"command":"watch"}` + "\n"))
		conns = append(conns, conn)
	}
	one := connect(t, dir)
	one.SetReadDeadline(time.Now().Add(lab.Patience))
	if b, err := io.ReadAll(one); len(b) != 0 || err != nil {
		t.Errorf("one too many: got %q and %v, want to be hung up on at once", b, err)
	}
	conns[0].Close()
	lab.Eventually(t, "the place of one that has left", func() bool {
		c := lab.Value(Dial(dir))(t)
		defer c.Close()
		return c.Ask(t.Context(), Request{Command: CommandStatus}, func(Reply) error { return nil }) == nil
	})
}

// TestSlowReader: the server drops a client that does not read its reply.
func TestSlowReader(t *testing.T) {
	ended := make(chan error, 1)
	dir := serving(t, func(_ context.Context, _ Request, a *Answer) error {
		a.within = 50 * time.Millisecond
		for {
			if err := a.Send(Reply{Error: strings.Repeat("x", 1<<16)}); err != nil {
				ended <- err
				return err
			}
		}
	})
	conn := connect(t, dir)
	conn.Write([]byte(`{"command":"grants"}` + "\n"))
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	case <-time.After(lab.Patience):
		t.Error("a reader that does not read is waited for")
	}
}

// TestHangUp: work for a client ends when the client disconnects.
func TestHangUp(t *testing.T) {
	ended := make(chan struct{})
	conn := connect(t, serving(t, func(ctx context.Context, _ Request, _ *Answer) error {
		<-ctx.Done()
		close(ended)
		return nil
	}))
	conn.Write([]byte(`{"command":"watch"}` + "\n"))
	conn.Close()
	select {
	case <-ended:
	case <-time.After(lab.Patience):
		t.Error("the handler's context did not end")
	}
}

// TestStopped: a client that is being answered when the server stops is not told that the answer is complete.
func TestStopped(t *testing.T) {
	l := lab.Value(Listen(t.TempDir(), os.Geteuid()))(t)
	defer l.Close()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- l.Serve(ctx, func(ctx context.Context, _ Request, _ *Answer) error {
			stop()
			<-ctx.Done()
			return nil
		})
	}()
	c := lab.Value(Dial(filepath.Dir(l.net.Addr().String())))(t)
	defer c.Close()
	if err := c.Ask(t.Context(), Request{Command: CommandWatch}, nil); !errors.Is(err, errHungUp) {
		t.Errorf("got %v, want that the server hung up", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPatient: a handler that waits for its reader has no deadline.
func TestPatient(t *testing.T) {
	dir := serving(t, func(_ context.Context, r Request, a *Answer) error {
		a.Patient()
		return statusOf(t.Context(), r, a)
	})
	got := 0
	if err := asked(t, dir, CommandWatch, func(Reply) error { got++; return nil }); err != nil || got != 1 {
		t.Errorf("%d replies came, %v", got, err)
	}
}
