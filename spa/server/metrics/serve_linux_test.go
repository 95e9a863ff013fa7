package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// at returns settings for a page at a socket.
func at(path string) config.Metrics { return config.Metrics{Listen: "unix:" + path} }

// open opens a page.
func open(t *testing.T, m config.Metrics, owner int) (*Page, error) {
	t.Helper()
	p, err := Open(m, owner, Options{Sample: sampled, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		t.Cleanup(func() { p.Close() })
	}
	return p, err
}

// serving serves a page until the test is over.
func serving(t *testing.T, m config.Metrics) {
	t.Helper()
	p := lab.Value(open(t, m, os.Geteuid()))(t)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, p.Close()); err != nil {
			t.Error(err)
		}
	})
}

// request sends a request to the page at a socket.
func request(t *testing.T, path, method, url string) (int, string) {
	t.Helper()
	client := http.Client{Timeout: lab.Patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
	r := lab.Value(http.NewRequest(method, "http://gateway"+url, nil))(t)
	answer := lab.Value(client.Do(r))(t)
	defer answer.Body.Close()
	body := lab.Value(io.ReadAll(answer.Body))(t)
	return answer.StatusCode, string(body)
}

func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	serving(t, at(path))
	for url, want := range map[string]int{"/metrics": 200, "/": 404, "/debug/pprof/": 404, "/metrics/": 404} {
		if code, _ := request(t, path, "GET", url); code != want {
			t.Errorf("%s: got %d, want %d", url, code, want)
		}
	}
	if code, _ := request(t, path, "POST", "/metrics"); code != http.StatusMethodNotAllowed {
		t.Errorf("POST: got %d", code)
	}
	if _, body := request(t, path, "GET", "/metrics"); !strings.Contains(body, "\nspa_guard_in_place 1\n") {
		t.Errorf("got %s", body)
	}
}

// TestIdleClients: clients that send no request, or never read, do not block the page.
func TestIdleClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	serving(t, at(path))
	var all []net.Conn
	for i := range 50 {
		conn := lab.Value(net.Dial("unix", path))(t)
		defer conn.Close()
		all = append(all, conn)
		if i%2 == 0 {
			fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n")
		}
	}
	start := time.Now()
	if code, _ := request(t, path, "GET", "/metrics"); code != 200 {
		t.Errorf("got %d", code)
	}
	if waited := time.Since(start); waited >= readWithin {
		t.Errorf("the page came only after the idle clients were disconnected, %v later", waited)
	}
	left := 0
	for _, conn := range all {
		conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // what the server closed is at its end already
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			left++
		}
	}
	if left > maxConns {
		t.Errorf("%d connections are open, want at most %d", left, maxConns)
	}
}

// TestHugeHeader: an endless request is cut off without the page.
func TestHugeHeader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	serving(t, at(path))
	conn := lab.Value(net.Dial("unix", path))(t)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(lab.Patience))
	fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: gateway\r\nX: ")
	for range 1000 {
		if _, err := fmt.Fprint(conn, strings.Repeat("x", 1<<10)); err != nil {
			break
		}
	}
	answer, _ := io.ReadAll(conn)
	if !strings.Contains(string(answer), " 431 ") && len(answer) > 0 || strings.Contains(string(answer), "spa_") {
		t.Errorf("got %s", answer)
	}
}

// TestSocketMode: the group of the directory may connect, and others may not.
func TestSocketMode(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	lab.Must(t, os.Chown(dir, 0, 4321))
	path := filepath.Join(dir, "metrics.sock")
	if _, err := open(t, at(path), 1234); err != nil {
		t.Fatal(err)
	}
	info := lab.Value(os.Stat(path))(t)
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 1234 || s.Gid != 4321 || info.Mode().Perm() != 0o660 {
		t.Errorf("%v of %d:%d, want 0660 of 1234:4321", info.Mode(), s.Uid, s.Gid)
	}
}

// leave leaves a socket as a killed server does.
func leave(t *testing.T, path string) {
	t.Helper()
	l := lab.Value(net.Listen("unix", path))(t)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

// TestStaleSocket: a socket that no process serves is replaced if it is the server's or root's; anything else with its
// name stays.
func TestStaleSocket(t *testing.T) {
	lab.NeedRoot(t)
	path := func() string { return filepath.Join(t.TempDir(), "metrics.sock") }
	for _, owner := range []int{0, 1234} {
		stale := path()
		leave(t, stale)
		lab.Must(t, os.Chown(stale, owner, -1))
		if _, err := open(t, at(stale), 1234); err != nil {
			t.Errorf("left by user %d: %v", owner, err)
		}
	}
	others := path()
	leave(t, others)
	os.Chown(others, 4321, -1)
	if _, err := open(t, at(others), 1234); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Errorf("another user's: got %v", err)
	}
	file, link, hard := path(), path(), path()
	target := path()
	leave(t, target)
	lab.Must(t, errors.Join(os.WriteFile(file, []byte("text"), 0o600), os.Symlink(target, link), os.Link(target, hard)))
	for name, at := range map[string]config.Metrics{"a file": at(file), "a link": at(link), "a hard link": at(hard)} {
		if _, err := open(t, at, 0); err == nil {
			t.Errorf("%s was replaced", name)
		}
	}
	for _, there := range []string{others, file, link, hard, target} {
		if _, err := os.Lstat(there); err != nil {
			t.Error(err)
		}
	}
}

// TestStaleInTheUnit: a killed server's socket is replaced even under systemd, where root has no right to the files of
// the user that the socket belongs to.
func TestStaleInTheUnit(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "metrics.sock")
	lab.Must(t, errors.Join(os.Chown(dir, 0, 4321), os.Chmod(dir, 0o750)))
	leave(t, path)
	lab.Must(t, errors.Join(os.Chmod(path, 0o660), os.Chown(path, 1234, 4321)))
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends without its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var few [2]unix.CapUserData
		few[0].Effective = 1 << unix.CAP_CHOWN
		few[0].Permitted = few[0].Effective
		err := unix.Capset(&header, &few[0])
		if err == nil {
			_, err = open(t, at(path), 1234)
		}
		done <- err
	}()
	lab.Must(t, <-done)
	if info, err := os.Stat(path); err != nil || info.Sys().(*syscall.Stat_t).Uid != 1234 || info.Mode().Perm() != 0o660 {
		t.Errorf("got %v, %v", info, err)
	}
}

// TestInUse: the error says how to find the program that has the address, even if it does not respond.
func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	l := lab.Value(net.Listen("unix", path))(t) // never accepts
	defer l.Close()
	tcp := lab.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer tcp.Close()
	for m, show := range map[config.Metrics]string{
		at(path):                      "ss -xlp | grep -F " + path,
		{Listen: tcp.Addr().String()}: fmt.Sprintf("ss -tlnp 'sport = :%d'", tcp.Addr().(*net.TCPAddr).Port),
	} {
		_, err := open(t, m, os.Geteuid())
		used, ok := errors.AsType[*InUse](err)
		if !ok || used.Show != show || !strings.Contains(err.Error(), m.Listen) {
			t.Errorf("%s: got %v (%+v), want a hint to %s", m.Listen, err, used, show)
		}
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the other program has lost its socket: %v", err)
	} else {
		conn.Close()
	}
}
