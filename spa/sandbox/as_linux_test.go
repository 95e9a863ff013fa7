package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// TestAs: the file rights of the user and none of root's on every thread, and afterwards root's again.
func TestAs(t *testing.T) {
	lab.NeedRoot(t)
	lab.NeedProgram(t, "setpriv", "apt-get install util-linux")
	self := lab.Value(os.Executable())(t)
	dir := prepare(t)
	// As under systemd: root without the right to read other users' files.
	cmd := exec.Command("setpriv", "--groups=5",
		"--bounding-set=-all,+net_admin,+net_raw,+setuid,+setgid,+setpcap,+chown", "--", self)
	cmd.Env = append(os.Environ(), "SANDBOX_HELPER=as", "SANDBOX_USER=nobody", "SANDBOX_DIR="+dir, quickExit)
	cmd.Stderr = os.Stderr
	const nobody, stranger, group = 65534, 54321, 5
	for name, owner := range map[string][2]int{"of root": {0, 0}, "of the user": {nobody, nobody},
		"of a group": {stranger, group}} {
		path := filepath.Join(dir, name)
		lab.Must(t, os.WriteFile(path, nil, 0o640))
		lab.Must(t, errors.Join(os.Chown(path, owner[0], owner[1]), os.Chmod(path, 0o640)))
	}
	r := run(t, cmd)
	if r.Err != "" || r.State.UID != nobody {
		t.Errorf("the drop after it: got %+v, %s", r.State, r.Err)
	}
	if len(r.Results) != 3*4*allThreads {
		t.Errorf("%d results, want %d", len(r.Results), 3*4*allThreads)
	}
	for what, got := range r.Results {
		user := strings.HasPrefix(what, "meanwhile")
		denied := strings.Contains(what, "of root") && user || strings.Contains(what, "of a group") && user ||
			strings.Contains(what, "of the user") && !user || strings.Contains(what, "packets") && user
		if (got == "") == denied || denied && !strings.HasSuffix(got, unix.EACCES.Error()) &&
			!strings.HasSuffix(got, unix.EPERM.Error()) {
			t.Errorf("%s: %q", what, got)
		}
	}
}
