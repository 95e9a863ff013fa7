package main

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/examples/internal/stage"
	"sallyport/spa/lab"
)

// TestMain runs the tests or, depending on its own name, what they start: the demo itself, or the impostors of
// TestImpostors.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "demo":
		main()
	case "go":
		impostors()
	case "spa-server", "spa-client", "spa-keygen":
		impersonate()
	default:
		lab.Main(m)
	}
}

func TestDemo(t *testing.T) {
	cmd, files := stage.Rehearsal(t, "demo")
	stage.Told(t, cmd, files,
		"9. The server stops",
		"ok   stranger scans tcp/1 to tcp/1024       open: 22;",
		"ok   stranger scans tcp/1 to tcp/1024       open: none; no answer: 22",
		"INFO ready version=",
		"WARN packets came from an address that cannot be their client's",
		"spa-server status --config gateway",
		"2 granted",
		"1 unspent: nonce already spent, from another address",
		"ok   alice    in her session",
		"spa-client open ssh --host gw --for 5s",
		"ssh (tcp/22) is open on gw for 192.0.2.2 until ",
	)
}

// TestInterrupted is Ctrl-C while the server runs.
func TestInterrupted(t *testing.T) {
	cmd, files := stage.Rehearsal(t, "demo")
	r, w := narrowPipe(t)
	cmd.Stdout = w
	stderr := new(bytes.Buffer)
	cmd.Stderr = stderr
	lab.Must(t, cmd.Start())
	w.Close()
	told := bufio.NewScanner(r)
	for told.Scan() {
		if strings.HasPrefix(told.Text(), "4. ") {
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
		}
		if strings.HasPrefix(told.Text(), "5. ") {
			t.Error("it continues with the next step")
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("got %v, want exit code 1", err)
	}
	if !strings.Contains(stderr.String(), "step 4 (Alice's packet opens it, to her only): interrupted") {
		t.Errorf("got %q, want the step that was interrupted", stderr)
	}
	stage.NothingLeft(t, files)
}

// narrowPipe is a pipe with room for one write: the writer is never more than two ahead of the reader.
func narrowPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var ends [2]int
	lab.Must(t, unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_DIRECT))
	r, w = os.NewFile(uintptr(ends[0]), "reader"), os.NewFile(uintptr(ends[1]), "writer")
	t.Cleanup(func() { r.Close() })
	if size, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil ||
		size != os.Getpagesize() {
		t.Fatalf("a pipe of %d bytes: %v", size, err)
	}
	return r, w
}

// TestOldGo: make says which Go it needs, and nothing else; with a new one it builds.
func TestOldGo(t *testing.T) {
	lab.NeedProgram(t, "make", "apt-get install make")
	for version, want := range map[string]string{
		"go1.19.8": `^Sallyport needs Go 1\.\d+\.\d+ or later \(https://go\.dev/dl/\), and \S+ here is ` +
			`1\.19\.8\.\nmake(\[\d+\])?: .*\n$`,
		"go1.25": `^Sallyport needs Go 1\.\d+\.\d+ or later \(https://go\.dev/dl/\), and \S+ here is ` +
			`1\.25\.\nmake(\[\d+\])?: .*\n$`,
		"": `^Sallyport needs Go 1\.\d+\.\d+ or later \(https://go\.dev/dl/\), and \S+ here is ` +
			`missing\.\nmake(\[\d+\])?: .*\n$`,
		"go1.99.1":  `^built\n$`,
		"go1.100.0": `^built\n$`,
	} {
		path := filepath.Join(t.TempDir(), "go")
		script := "#!/bin/sh\n[ \"$1\" = run ] && echo built && exit\n[ \"$1\" = version ] && echo go version " + version +
			" linux/amd64 && exit\nexit 1\n"
		if version != "" {
			lab.Must(t, os.WriteFile(path, []byte(script), 0o755))
		}
		cmd := exec.Command("make", "-C", "../..", "--no-print-directory", "demo", "GO="+path)
		out, _ := cmd.CombinedOutput()
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("%q: got %q, want %s", version, out, want)
		}
	}
}

// TestImpostors makes the demo build programs that print the right things but guard nothing.
func TestImpostors(t *testing.T) {
	cmd, files := stage.Rehearsal(t, "demo")
	self := lab.Value(os.Executable())(t)
	path := t.TempDir()
	lab.Must(t, os.Symlink(self, filepath.Join(path, "go")))
	cmd.Env = append(cmd.Env, "PATH="+path)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("got %v, want exit code 1", err)
	}
	for _, want := range []string{
		"BAD  alice    connects to 192.0.2.1:22",
		"demo: error: step 3 (The server starts, and the port goes dark): alice at 192.0.2.1:22: connected to a " +
			"port that must be dark",
		"stranger at 192.0.2.1:22: connected to a port that must be dark",
		"the server on gateway said:\nall is well",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	stage.NothingLeft(t, files)
}

// impostors replaces the go command: it puts copies of this program in place of the programs.
func impostors() {
	dir := os.Args[3] // go build -o DIR ...
	self, err := os.ReadFile("/proc/self/exe")
	for _, name := range []string{"spa-server", "spa-client", "spa-keygen"} {
		err = errors.Join(err, os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), self, 0o755))
	}
	if err != nil {
		panic(err)
	}
}

// impersonate reports success, and as a server that it is ready.
func impersonate() {
	os.Stdout.WriteString("all is well\n")
	if os.Args[1] != "run" {
		return
	}
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		panic(err)
	}
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		panic(err)
	}
	_, _ = conn.Read(make([]byte, 1)) // until it is killed
}

func TestPlain(t *testing.T) {
	for log, want := range map[string]string{
		"time=2026-01-01T00:00:00Z level=INFO msg=ready clients=1\n":              "INFO ready clients=1\n",
		"time=2026-01-01T00:00:00Z level=INFO msg=\"no \\\"spa\\\"\" clients=1\n": "INFO no \"spa\" clients=1\n",
		"time=2026-01-01T00:00:00Z level=WARN msg=beware\n":                       "WARN beware\n",
		"words\n": "words\n",
	} {
		if got := withoutTime(log); got != want {
			t.Errorf("%q: got %q, want %q", log, got, want)
		}
	}
}
