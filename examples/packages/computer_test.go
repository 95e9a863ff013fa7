package packages

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// computer is a Debian with systemd: the files in $SALLYPORT_DEBIAN, which debootstrap made, or without that this
// machine's, over which everything that is written is its own.
type computer struct {
	t            *testing.T
	dir          string
	holder       *exec.Cmd // has the disk mounted
	client, host *lab.Host // on a cable: see lab.Pair
	init         int       // systemd; zero: it is off
}

// newComputer makes one that has no Sallyport, and is off.
func newComputer(t *testing.T) *computer {
	t.Helper()
	lab.NeedRoot(t)
	lab.NeedNamespaces(t)
	lab.NeedProgram(t, "systemctl", "apt-get install systemd")
	lab.NeedProgram(t, "dpkg", "apt-get install dpkg")
	c := &computer{t: t, dir: t.TempDir()}
	c.holder = exec.Command("unshare", "-m", "--propagation", "private", script(t), c.dir)
	c.holder.Env = append(os.Environ(), "LOWER="+os.Getenv("SALLYPORT_DEBIAN"))
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
	// Without the index of all manual pages after each step, and without waiting for the disk.
	c.off(`rm -f /usr/sbin/policy-rc.d /usr/local/bin/spa-* /var/lib/man-db/auto-update
echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/test
! id spa >/dev/null 2>&1 || userdel spa
mkdir -p /srv/packages`)
	return c
}

func script(t *testing.T) string { return lab.Value(filepath.Abs("../bastion/systemd.sh"))(t) }

func (c *computer) disk(name ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(c.holder.Process.Pid), "root", c.dir}, name...)...)
}

// path returns the path of the computer's file for this process.
func (c *computer) path(name string) string { return c.disk("root", name) }

// has reports whether the computer has a file.
func (c *computer) has(name string) bool {
	_, err := os.Lstat(c.path(name))
	return err == nil
}

// put copies packages to /srv/packages.
func (c *computer) put(dir string) {
	c.t.Helper()
	for _, path := range lab.Value(filepath.Glob(filepath.Join(dir, "*")))(c.t) {
		data := lab.Value(os.ReadFile(path))(c.t)
		lab.Must(c.t, os.WriteFile(c.path("/srv/packages/"+filepath.Base(path)), data, 0o644))
	}
}

// off runs a shell command on the disk while the computer is off, in a chroot.
func (c *computer) off(line string) string {
	c.t.Helper()
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(c.holder.Process.Pid), "--mount", "chroot",
		filepath.Join(c.dir, "root"), "/bin/sh", "-ec", line)
	cmd.Env = environment
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

var environment = []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
	"DEBIAN_FRONTEND=noninteractive"}

// up boots and waits until all units have started.
func (c *computer) up() {
	c.t.Helper()
	c.client, c.host = lab.Pair(c.t)
	cgroup := filepath.Join(c.dir, "cgroup", fmt.Sprintf("sallyport-packages-%d", c.holder.Process.Pid))
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(c.holder.Process.Pid), "--mount", script(c.t), c.dir, "boot",
		cgroup)
	lab.Must(c.t, c.host.Start(cmd))
	c.t.Cleanup(func() { c.halt(cmd, filepath.Base(cgroup)) })
	lab.Eventually(c.t, "systemd to be there", func() bool {
		child, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		if err != nil || len(child) == 0 {
			return false
		}
		c.init, err = strconv.Atoi(strings.Fields(string(child))[0])
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.init))
		return err == nil && string(comm) == "systemd\n"
	})
	lab.Eventually(c.t, "the boot to be over", func() bool {
		out, _ := c.try("systemctl is-system-running")
		return out == "running\n" || out == "degraded\n"
	})
}

// halt is a power cut.
func (c *computer) halt(cmd *exec.Cmd, cgroup string) {
	_ = syscall.Kill(c.init, syscall.SIGKILL)
	_ = cmd.Wait() // the status only says how systemd ended
	lab.Eventually(c.t, "its groups of processes to be gone", func() bool {
		remove := exec.Command("find", c.disk("cgroup", cgroup), "-depth", "-type", "d", "-delete")
		_ = remove.Run() // until the processes are gone
		_, err := os.Stat(c.disk("cgroup", cgroup))
		return err != nil
	})
}

// try runs a shell command on the running computer as root.
func (c *computer) try(line string) (string, error) {
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(c.init), "--all", "--root", "--wd", "/bin/sh", "-ec", line)
	cmd.Env = environment
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (c *computer) run(line string) string {
	c.t.Helper()
	out, err := c.try(line)
	if err != nil {
		c.t.Fatalf("%s: %v\n%s\n%s", line, err, out, c.log())
	}
	return out
}

func (c *computer) log() string {
	out, _ := c.try("journalctl -b --no-pager -u spa-server -u spa-guard | tail -n 40")
	return out
}
