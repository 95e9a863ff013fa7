package setup

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

const squatEnv = "SPA_TEST_SQUAT"

func TestMain(m *testing.M) {
	if os.Getenv(squatEnv) != "" {
		squat()
	}
	lab.Main(m)
}

// squat holds the name that a server locks its network namespace with, until it is killed.
func squat() {
	if os.Getenv(squatEnv) == "deaf" {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil || unix.Bind(fd, &unix.SockaddrUnix{Name: namespaceLock}) != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString("holding\n")
		for {
			unix.Pause()
		}
	}
	name, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: namespaceLock})
	if err != nil {
		os.Exit(1)
	}
	os.Stdout.WriteString("holding\n")
	for {
		conn, err := name.AcceptUnix()
		if err != nil {
			os.Exit(1)
		}
		conn.Close()
	}
}

func TestLock(t *testing.T) {
	host := lab.New(t, "gateway")[0]
	lockIn := func(dir string) (unlock func() error, err error) {
		err = host.Do(func() error {
			l, err := Lock(dir)
			if err == nil {
				unlock = l.Close
			}
			return err
		})
		return unlock, err
	}
	here, elsewhere := t.TempDir(), t.TempDir()
	unlock := lab.Value(lockIn(here))(t)
	for name, dir := range map[string]string{"the same directory": here, "the same network namespace": elsewhere} {
		if _, err := lockIn(dir); !errors.Is(err, ErrRunning) {
			t.Errorf("%s: got %v, want ErrRunning", name, err)
		}
	}
	lab.Must(t, unlock())
	first, err := lockIn(elsewhere)
	if err != nil {
		t.Fatalf("once the first has gone: %v", err)
	}
	time.AfterFunc(lockWait/10, func() { first() })
	if unlock, err = lockIn(here); err != nil {
		t.Fatalf("while the first is about to go: %v", err)
	}
	unlock()
}

// TestSquatter: a local user who holds the name cannot keep a server from starting.
func TestSquatter(t *testing.T) {
	lab.NeedRoot(t)
	host := lab.New(t, "gateway")[0]
	self := lab.Value(os.Executable())(t)
	for _, test := range []struct {
		name, how string
		uid       uint32
		want      error
	}{
		{"another user", "listening", 65534, nil},
		{"another user who does not listen", "deaf", 65534, nil},
		{"root", "listening", 0, ErrRunning},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/fd/3")
			file, err := os.Open(self) // user nobody may not enter the directory of the test binary
			lab.Must(t, err)
			defer file.Close()
			cmd.ExtraFiles = []*os.File{file}
			cmd.Env = append(os.Environ(), squatEnv+"="+test.how)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: test.uid, Gid: test.uid}}
			out := lab.Value(cmd.StdoutPipe())(t)
			lab.Must(t, host.Start(cmd))
			defer func() { cmd.Process.Kill(); cmd.Wait() }()
			var line [8]byte
			if _, err := out.Read(line[:]); err != nil {
				t.Fatalf("the squatter: %v", err)
			}
			err = host.Do(func() error {
				l, err := Lock(t.TempDir())
				if err == nil {
					l.Close()
				}
				return err
			})
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}
