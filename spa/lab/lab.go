// Package lab makes throw-away networks out of Linux network namespaces, for tests and for the demonstration in
// examples/demo: hosts, links between them, addresses, routes, processes and connections. It runs no other program
// (neither ip nor nft) and needs root or unprivileged user namespaces.
//
// A [Host] is a namespace without a name: a file descriptor and a thread of this process hold it, so it leaves nothing
// in /run/netns, and when the process dies for any reason, the kernel removes the namespace and its links.
//
// Code runs inside a host on a thread that is inside it: [Host.Do] runs a function there, and sockets made by that
// function stay in the host for as long as they are open, whichever thread uses them. Note:
//
//   - A goroutine that the function starts runs on another thread, outside the host.
//   - /proc/sys/net belongs to the thread that opens the file, so it is right inside Do.
//   - /proc/net belongs to the process's first thread; inside Do read /proc/thread-self/net.
//
// A package whose tests use a lab has this TestMain, so that an ordinary user can run them:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Patience is how long tests wait for what must happen. It is far longer than anything takes: a busy machine makes a
// test slow, but does not fail it.
const Patience = time.Minute

// Eventually waits until cond is true. If that takes longer than [Patience], it fails the test and names what it waited
// for.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	eventually(t, Patience, what, cond)
}

func eventually(t testing.TB, within time.Duration, what string, cond func() bool) {
	t.Helper()
	if !poll(within, cond) {
		t.Fatalf("waited %v for %s, which did not happen", within, what)
	}
}

// pollEvery is the pause between two checks.
const pollEvery = 2 * time.Millisecond

// poll checks cond until it is true, and reports whether that was in time.
func poll(within time.Duration, cond func() bool) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	again := time.NewTicker(pollEvery)
	defer again.Stop()
	for !cond() {
		select {
		case <-again.C:
		case <-deadline.C:
			return false
		}
	}
	return true
}

// ServeUnix calls serve for each connection to a socket at a path, and closes the connection afterwards.
func ServeUnix(t testing.TB, path string, serve func(net.Conn)) {
	t.Helper()
	Serve(t, Value(net.Listen("unix", path))(t), serve)
}

// Serve calls serve for each connection that l accepts, and closes the connection afterwards. It closes l when the test
// ends.
func Serve(t testing.TB, l net.Listener, serve func(net.Conn)) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
}

// Push writes to a connection every 5 ms until that fails, without being asked.
func Push(conn net.Conn) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if _, err := io.WriteString(conn, "news"); err != nil {
			return
		}
	}
}

// Repeat calls do continuously, on another goroutine, until stop is called, which waits for the last call.
func Repeat(do func()) (stop func()) {
	ended, ending := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ending:
				return
			default:
				do()
			}
		}
	}()
	return func() { close(ending); <-ended }
}

// Buffer is a bytes.Buffer that can be read while it is written to.
type Buffer struct {
	mu  sync.Mutex
	all bytes.Buffer
}

// Write appends to the buffer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

// String returns everything written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

// Reset empties the buffer.
func (b *Buffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all.Reset()
}

// NeedProgram returns the path of a program that the test runs. Without it the test is skipped, or fails if CI is set.
// get is how to get the program: "apt-get install" and packages.
func NeedProgram(t testing.TB, name, get string) string {
	t.Helper()
	if !strings.HasPrefix(get, "apt-get install ") {
		t.Fatalf("lab: how to get %s: %q does not begin with apt-get install", name, get)
		return ""
	}
	path, err := exec.LookPath(name)
	if err != nil {
		Skip(t, "needs the program "+name+": "+get)
	}
	return path
}

// NotRoot is the reason for which [NeedRoot] skips a test.
const NotRoot = "needs to be run as root, not in a user namespace"

// notRun names, in the environment, the file that lists the skipped tests. make test prints it at its end.
const notRun = "SALLYPORT_NOT_RUN"

// Skip skips a test that this machine cannot run, and lists it with the reason. If CI is set the test fails: a skip
// would hide that something was never tested.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(reason)
		return
	}
	if err := list(os.Getenv(notRun), t.Name(), reason); err != nil {
		t.Fatalf("%s, and listing that: %v", reason, err)
		return
	}
	t.Skip(reason)
}

// KernelLacks skips a test because the kernel lacks a feature, and lists it, even if CI is set: no package can provide
// the feature.
func KernelLacks(t testing.TB, what string) {
	t.Helper()
	reason := "needs a kernel with " + what
	if err := list(os.Getenv(notRun), t.Name(), reason); err != nil {
		t.Fatalf("%s, and listing that: %v", reason, err)
		return
	}
	t.Skip(reason)
}

// list adds a skipped test to the file at path, if there is one.
func list(path, test, reason string) error {
	if path == "" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(file, "%s.%s\t%s\n", filepath.Base(os.Args[0]), test, strings.ReplaceAll(reason, "\n", " "))
	return errors.Join(err, file.Close())
}
