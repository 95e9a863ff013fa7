package firewall

import (
	"encoding/binary"
	"encoding/gob"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/iptables"
	"sallyport/spa/lab"
)

// TestHelperServesNoStranger: if the program has file capabilities, any user who starts it as the helper could make
// it run another "iptables" with them.
func TestHelperServesNoStranger(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	lab.Must(t, errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o777)))
	said := filepath.Join(dir, "said")
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore"} {
		for _, name := range []string{name, strings.Replace(name, "ip", "ip6", 1)} {
			fakeProgram(t, dir, name, "/bin/grep CapEff /proc/self/status >>"+said+"; echo 'iptables v1.8.9 (nf_tables)'")
		}
	}
	stranger, theirs := socketPair(t)
	cmd := exec.Command(copyWithCapabilities(t, dir))
	cmd.Args = []string{iptables.HelperName, iptables.HelperArg, dir, "", filepath.Join(dir, "lock")}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534},
		Cloneflags: unix.CLONE_NEWNET}
	lab.Must(t, cmd.Start())
	lab.Must(t, theirs.Close())
	var p iptables.Programs
	if gob.NewDecoder(stranger).Decode(&p) == nil && p.Trouble == "" {
		gob.NewEncoder(stranger).Encode(iptables.Request{Op: iptables.OpLook})
		stranger.Read(make([]byte, 1))
	}
	lab.Must(t, stranger.Close())
	if err := cmd.Wait(); err == nil {
		t.Error("the helper served another user")
	}
	if b, err := os.ReadFile(said); err == nil {
		t.Errorf("it ran that user's programs:\n%s", b)
	}
}

// copyWithCapabilities returns a copy of this program that any user may start with CAP_NET_ADMIN.
func copyWithCapabilities(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "program")
	b := lab.Value(os.ReadFile("/proc/self/exe"))(t)
	lab.Must(t, writeProgram(path, b))
	lab.Must(t, os.Chmod(path, 0o755))
	var capabilities []byte // struct vfs_cap_data: revision 2, effective
	for _, word := range []uint32{0x02000001, 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW, 0, 0, 0} {
		capabilities = binary.LittleEndian.AppendUint32(capabilities, word)
	}
	lab.Must(t, unix.Setxattr(path, "security.capability", capabilities, 0))
	return path
}

func socketPair(t *testing.T) (net.Conn, *os.File) {
	t.Helper()
	pair := lab.Value(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
	ours := os.NewFile(uintptr(pair[0]), "ours")
	defer ours.Close()
	c := lab.Value(net.FileConn(ours))(t)
	lab.Must(t, c.SetDeadline(time.Now().Add(lab.Patience)))
	return c, os.NewFile(uintptr(pair[1]), "theirs")
}
