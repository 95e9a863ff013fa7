package control

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// as runs do as another user, on a thread that ends afterwards.
func as(t *testing.T, uid int, do func()) {
	t.Helper()
	done := make(chan syscall.Errno)
	go func() {
		runtime.LockOSThread() // never unlocked
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		if errno == 0 {
			do()
		}
		done <- errno
	}()
	if errno := <-done; errno != 0 {
		t.Fatal(errno)
	}
}

// TestOthersAreRefused: only root can use root's server: the socket's mode refuses others, and so does the server if
// the mode was changed.
func TestOthersAreRefused(t *testing.T) {
	lab.NeedRoot(t)
	dir := serving(t, statusOf)
	for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		lab.Must(t, os.Chmod(path, 0o755))
	}
	ask := func() (err error) {
		as(t, 4321, func() {
			var c *Client
			if c, err = Dial(dir); err == nil {
				err = c.Ask(t.Context(), Request{Command: CommandStatus}, func(Reply) error { return nil })
				c.Close()
			}
		})
		return err
	}
	if err := ask(); !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "/proc/") {
		t.Errorf("by the socket's mode: got %v", err)
	}
	lab.Must(t, os.Chmod(filepath.Join(dir, SocketName), 0o666))
	var denied *Denied
	if err := ask(); !errors.As(err, &denied) || denied.Text != ErrRefused.Error() {
		t.Errorf("by the server: got %v", err)
	}
}

// TestGivenAway: the socket is private to its owner; nothing else is ever given away.
func TestGivenAway(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	for range 2 { // the second time over a stale one
		l := lab.Value(Listen(dir, 4321))(t)
		var stat unix.Stat_t
		path := filepath.Join(dir, SocketName)
		if err := unix.Lstat(path, &stat); err != nil || stat.Uid != 4321 || stat.Mode != unix.S_IFSOCK|0o600 {
			t.Errorf("got %o of %d, %v", stat.Mode, stat.Uid, err)
		}
		lab.Must(t, errors.Join(l.net.Close(), os.Remove(path), os.WriteFile(path, nil, 0o600)))
		if err := l.give(4321); err == nil {
			t.Error("a file was given away")
		}
		if err := unix.Lstat(path, &stat); err != nil || stat.Uid == 4321 {
			t.Errorf("it is of %d now, %v", stat.Uid, err)
		}
		lab.Must(t, errors.Join(os.Remove(path), l.dir.Close()))
		stale := lab.Value(net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path}))(t)
		stale.SetUnlinkOnClose(false)
		stale.Close()
	}
}

// TestNotOurs: a file with the socket's name that is not a socket is left alone, before and after.
func TestNotOurs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, SocketName)
	l := lab.Value(Listen(dir, os.Geteuid()))(t)
	lab.Must(t, errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)))
	if err := l.Close(); err == nil {
		t.Error("closing does not say that something else has the name")
	}
	if _, err := Listen(dir, os.Geteuid()); err == nil || errors.Is(err, syscall.EADDRINUSE) ||
		errors.Is(err, syscall.EINVAL) {
		t.Errorf("in the place of a file: got %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

// TestClose: Close removes the socket if the user may, and Serve returns.
func TestClose(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	l, err := Listen(dir, os.Geteuid())
	lab.Must(t, err)
	served := make(chan error)
	go func() { served <- l.Serve(t.Context(), statusOf) }()
	if err := errors.Join(l.Close(), <-served); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, SocketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}

	l = lab.Value(Listen(dir, os.Geteuid()))(t)
	as(t, 4321, func() { err = l.Close() })
	if err != nil {
		t.Errorf("a server that has dropped its privileges: %v", err)
	}
	if err := (&Listener{dir: l.dir}).Close(); err == nil {
		t.Error("the directory is left open")
	}
}

// hostileServer answers every client with answer, and closes the connection.
func hostileServer(t testing.TB, answer func(net.Conn)) (dir string) {
	t.Helper()
	dir = t.TempDir()
	lab.ServeUnix(t, filepath.Join(dir, SocketName), answer)
	return dir
}

// TestEveryReply: each reply is delivered, however long the reader takes.
func TestEveryReply(t *testing.T) {
	dir := hostileServer(t, func(conn net.Conn) {
		for range 3 {
			if _, err := conn.Write([]byte(`{"error":"` + strings.Repeat("x", 1<<20) + `"}` + "\n")); err != nil {
				return
			}
		}
		conn.Write([]byte(`{"done":true}` + "\n"))
	})
	c, err := Dial(dir)
	lab.Must(t, err)
	defer c.Close()
	got := 0
	err = c.Ask(t.Context(), Request{Command: CommandGrants}, func(Reply) error {
		got++
		return c.conn.SetDeadline(time.Unix(1, 0)) // the reader was slow
	})
	if err != nil || got != 3 {
		t.Errorf("got %d, %v", got, err)
	}
}

// TestHangsUp: a server that closes early did not finish the command, which is not the same as no answer.
func TestHangsUp(t *testing.T) {
	dir := hostileServer(t, func(conn net.Conn) { conn.Read(make([]byte, 1000)) })
	c, err := Dial(dir)
	lab.Must(t, err)
	defer c.Close()
	err = c.Ask(t.Context(), Request{Command: CommandReload}, func(Reply) error { return nil })
	if err == nil || errors.Is(err, ErrSilent) {
		t.Errorf("got %v", err)
	}
}

// TestInterruptedAtOnce: a client that is interrupted before its request does not wait.
func TestInterruptedAtOnce(t *testing.T) {
	dir := hostileServer(t, func(conn net.Conn) { conn.Read(make([]byte, 1000)); conn.Read(make([]byte, 1)) })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		c := lab.Value(Dial(dir))(t)
		if err := c.Ask(ctx, Request{Command: CommandReload}, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		c.Close()
	}
}

// TestNoRequest: input that is not exactly one request is refused with a reason, and no handler sees it. The server
// closes the connection after each answer.
func TestNoRequest(t *testing.T) {
	handled := make(chan Request, 10)
	dir := serving(t, func(_ context.Context, r Request, _ *Answer) error { handled <- r; return nil })
	ask := func(text string) string {
		conn := connect(t, dir)
		conn.SetDeadline(time.Now().Add(lab.Patience))
		conn.Write([]byte(text))
		conn.(*net.UnixConn).CloseWrite()
		b, err := io.ReadAll(conn)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) { // it has not read everything
			t.Errorf("%.40q: %v", text, err)
		}
		return string(b)
	}
	for _, text := range []string{
		"", "\n", "status\n", `{"command":"status"}`, `{"command":"status","more":1}` + "\n",
		`{"command":"status"} {"command":"status"}` + "\n", `{"command":"` + strings.Repeat("x", maxRequest) + `"}` + "\n",
	} {
		if got := ask(text); !strings.Contains(got, `"error"`) || len(handled) > 0 {
			t.Errorf("%.40q: got %q, handled %d", text, got, len(handled))
		}
	}
	conn := connect(t, dir)
	conn.SetDeadline(time.Now().Add(lab.Patience))
	conn.Write([]byte(`{"command":"status"}` + "\n"))
	if _, err := io.ReadAll(conn); err != nil || len(handled) != 1 {
		t.Errorf("a request: %v, handled %d", err, len(handled))
	}
}

// TestStopsBesideAReader: a server that stops does not wait for a reader that it was patient with.
func TestStopsBesideAReader(t *testing.T) {
	dir := t.TempDir()
	l := lab.Value(Listen(dir, os.Geteuid()))(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	sending, served := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		served <- l.Serve(ctx, func(_ context.Context, _ Request, a *Answer) error {
			a.Patient()
			sending <- struct{}{}
			for {
				if err := a.Send(Reply{Error: strings.Repeat("x", 1<<16)}); err != nil {
					return err
				}
			}
		})
	}()
	connect(t, dir).Write([]byte(`{"command":"watch"}` + "\n"))
	<-sending
	stop()
	select {
	case err := <-served:
		if err := errors.Join(err, l.Close()); err != nil {
			t.Error(err)
		}
	case <-time.After(lab.Patience):
		t.Error("it is still serving")
	}
}
