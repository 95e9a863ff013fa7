package bastion

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// machine is a host with its own files.
type machine struct {
	host  *lab.Host
	files map[string]string // what its programs see, by place
	dir   string            // where commands run
	env   []string
}

// newMachine makes one whose /etc has the given text files, and what Debian's programs need there.
func newMachine(t *testing.T, host *lab.Host, dir, bin string, etc map[string]string) *machine {
	t.Helper()
	root := t.TempDir()
	m := &machine{host: host, dir: dir, files: map[string]string{
		"/etc": filepath.Join(root, "etc"), "/run": filepath.Join(root, "run"), "/usr/local/bin": bin,
		"/var/lib": filepath.Join(root, "lib"),
	}}
	lab.Must(t, os.MkdirAll(m.files["/var/lib"], 0o755))
	lab.Must(t, os.MkdirAll(filepath.Join(m.files["/etc"], "systemd", "system"), 0o755))
	lab.Must(t, os.MkdirAll(m.files["/run"], 0o755))
	for name, text := range etc {
		lab.Must(t, os.WriteFile(filepath.Join(m.files["/etc"], name), []byte(text), 0o644))
	}
	lab.Must(t, os.CopyFS(filepath.Join(m.files["/etc"], "alternatives"), os.DirFS("/etc/alternatives")))
	return m
}

// process is a command that runs on a machine.
type process struct {
	cmd  *exec.Cmd
	out  string // the file with its output
	done chan struct{}
}

// start starts a shell command; its processes end with the machine.
func (m *machine) start(t *testing.T, line string, env ...string) *process {
	t.Helper()
	out := lab.Value(os.CreateTemp(t.TempDir(), "out"))(t)
	defer out.Close()
	cmd := exec.Command("/bin/sh", "-e", "-c", line)
	cmd.Dir, cmd.Stdout, cmd.Stderr = m.dir, out, out
	cmd.Env = append(append(os.Environ(), m.env...), env...)
	lab.Must(t, m.host.Start(lab.See(cmd, m.files)))
	p := &process{cmd: cmd, out: out.Name(), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // its state has the exit code
	}()
	t.Cleanup(func() { p.stop(syscall.SIGKILL) })
	return p
}

// run runs a shell command to its end.
func (m *machine) run(t *testing.T, line string) (string, error) {
	t.Helper()
	p := m.start(t, line)
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return p.said(t), errors.New(p.cmd.ProcessState.String())
	}
	return p.said(t), nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop sends a signal, waits for the end and returns the exit code.
func (p *process) stop(sig syscall.Signal) int {
	_ = p.cmd.Process.Signal(sig) // it may have ended
	<-p.done
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) said(t *testing.T) string {
	t.Helper()
	data := lab.Value(os.ReadFile(p.out))(t)
	return string(data)
}

// source copies the source of the module, without build results and version control.
func source(t *testing.T) string {
	t.Helper()
	to := t.TempDir()
	root := lab.Value(filepath.Abs("../.."))(t)
	lab.Must(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case entry.IsDir() && (name == ".git" || name == "bin" || name == "dist" || entry.Name() == "testdata"):
			return filepath.SkipDir
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		case !entry.Type().IsRegular() || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		return copyFile(path, filepath.Join(to, name))
	}))
	return to
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
