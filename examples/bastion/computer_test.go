package bastion

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// computer is a machine that systemd boots. Its disk survives a reboot.
type computer struct {
	t      *testing.T // whose cables end with it
	dir    string
	holder *exec.Cmd // has the disk mounted
	boots  int

	// From a boot until the next halt.
	client, host *lab.Host // on a cable: see lab.Pair
	unshare      *exec.Cmd
	init         int // systemd
}

// newComputer makes one with the programs of this module, the units, an sshd, and the user spa. No unit is enabled, and
// it is off.
func newComputer(t *testing.T) *computer {
	t.Helper()
	lab.NeedRoot(t)
	lab.NeedNamespaces(t)
	lab.NeedProgram(t, "systemctl", "apt-get install systemd")
	lab.NeedProgram(t, "sshd", "apt-get install openssh-server")
	c := &computer{t: t, dir: t.TempDir()}
	script := lab.Value(filepath.Abs("systemd.sh"))(t)
	c.holder = exec.Command("unshare", "-m", "--propagation", "private", script, c.dir)
	c.holder.Stderr = os.Stderr
	c.holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := lab.Value(c.holder.StdoutPipe())(t)
	lab.Must(t, c.holder.Start())
	t.Cleanup(func() {
		_ = c.holder.Process.Kill()
		_ = c.holder.Wait() // killed
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("making the disk: %q, %v", line, err)
	}
	t.Cleanup(c.halt)
	c.install()
	return c
}

// path returns the path of the computer's file for this process.
func (c *computer) path(name string) string { return c.disk("root", name) }

func (c *computer) disk(name ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(c.holder.Process.Pid), "root", c.dir}, name...)...)
}

func (c *computer) install() {
	c.t.Helper()
	build := exec.Command("go", "build", "-o", c.path("/usr/local/bin")+"/", "sallyport/cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		c.t.Fatalf("building: %v\n%s", err, out)
	}
	for _, unit := range []string{"spa-guard.service", "spa-guard-root.service", "spa-server.service"} {
		lab.Must(c.t, copyFile(unit, c.path("/etc/systemd/system/"+unit)))
	}
	c.off("id spa >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin spa")
}

// off runs a shell command on the disk while the computer is off.
func (c *computer) off(line string) string {
	c.t.Helper()
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(c.holder.Process.Pid), "--mount", "chroot",
		filepath.Join(c.dir, "root"), "/bin/sh", "-ec", line)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// plug puts the computer on a new cable.
func (c *computer) plug() { c.client, c.host = lab.Pair(c.t) }

// boot starts systemd and returns at once.
func (c *computer) boot() {
	c.t.Helper()
	if c.host == nil {
		c.plug()
	}
	c.boots++
	script := lab.Value(filepath.Abs("systemd.sh"))(c.t)
	cgroup := filepath.Join(c.dir, "cgroup", fmt.Sprintf("sallyport-%d-%d", c.holder.Process.Pid, c.boots))
	c.unshare = exec.Command("nsenter", "--target", strconv.Itoa(c.holder.Process.Pid), "--mount",
		script, c.dir, "boot", cgroup)
	lab.Must(c.t, c.host.Start(c.unshare))
	lab.Eventually(c.t, "systemd to be there", func() bool {
		child, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", c.unshare.Process.Pid))
		if err != nil || len(child) == 0 {
			return false
		}
		c.init, err = strconv.Atoi(strings.Fields(string(child))[0])
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.init))
		return err == nil && string(comm) == "systemd\n"
	})
}

// up boots and waits until all units have started.
func (c *computer) up() {
	c.t.Helper()
	c.boot()
	c.started()
}

func (c *computer) started() {
	c.t.Helper()
	lab.Eventually(c.t, "the boot to be over", func() bool {
		out, _ := c.try("systemctl is-system-running")
		return out == "running\n" || out == "degraded\n"
	})
}

// halt is a power cut. All processes are gone, and so is the network namespace.
func (c *computer) halt() {
	if c.init == 0 {
		return
	}
	_ = syscall.Kill(c.init, syscall.SIGKILL)
	_ = c.unshare.Wait() // the status only says how systemd ended
	c.init = 0
	if err := c.host.Close(); err != nil {
		c.t.Error(err)
	}
	c.client, c.host = nil, nil
	top := c.disk("cgroup", fmt.Sprintf("sallyport-%d-%d", c.holder.Process.Pid, c.boots))
	lab.Eventually(c.t, "its groups of processes to be gone", func() bool {
		var dirs []string
		_ = filepath.WalkDir(top, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = os.Remove(dirs[i])
		}
		_, err := os.Stat(top)
		return err != nil
	})
}

// try runs a shell command on the running computer as root.
func (c *computer) try(line string) (string, error) {
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(c.init), "--all", "--root", "--wd", "/bin/sh", "-ec", line)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *computer) run(line string) string {
	c.t.Helper()
	out, err := c.try(line)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}
