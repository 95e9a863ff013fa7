// Package lab makes throw-away networks out of Linux network namespaces, for tests and
// for the demonstration in examples/demo: hosts, links between them, addresses, routes,
// processes and connections. It runs no program (neither ip nor nft) and needs root or
// unprivileged user namespaces.
//
// A [Host] is a namespace without a name: a file descriptor and a thread of this process
// hold it, so nothing is left in /run/netns, and when the process dies, however it
// dies, the kernel takes the namespace and its links away.
//
// What happens inside a host happens on a thread that is inside it: [Host.Do] runs a
// function there, and sockets made by that function stay in the host for as long as they
// are open, whichever thread uses them. Three things are to be known:
//
//   - A goroutine that the function starts runs on another thread, outside the host.
//   - /proc/sys/net is that of the thread that opens the file, so it is right inside Do.
//   - /proc/net is that of the process's first thread; inside Do read /proc/thread-self/net.
//
// A package whose tests use a lab has this TestMain, so that an ordinary user can run them:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
package lab

import (
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Patience is how long tests wait for what has to come. It is far longer than anything takes:
// a machine that is busy with something else makes a test slow, not red.
const Patience = time.Minute

// Eventually waits until cond is true and fails the test, naming what was waited for,
// where that takes longer than [Patience].
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	eventually(t, Patience, what, cond)
}

func eventually(t testing.TB, within time.Duration, what string, cond func() bool) {
	t.Helper()
	if !poll(within, cond) {
		t.Fatalf("waited %v in vain for %s", within, what)
	}
}

// pollEvery is the pause between two looks.
const pollEvery = 2 * time.Millisecond

// poll looks until cond is true, and reports whether it became so in time.
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

// ServeUnix has serve speak to whoever connects to a socket at a path, and hangs up behind it.
func ServeUnix(t testing.TB, path string, serve func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
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

// NeedProgram returns the path of a program that the test runs. Without it the test is
// skipped with the sentence get, which says how to get the program; where CI is set
// it fails.
func NeedProgram(t testing.TB, name, get string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		lacking(t, "needs the program "+name+": "+get)
	}
	return path
}

// lacking skips the test with a reason, or fails it where CI is set: there a skip would
// hide that something was never tried.
func lacking(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(reason)
		return
	}
	t.Skip(reason)
}
