package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"sallyport/spa/lab"
)

// refusals are the errors of a refused attack; any other error means that it was not really tried.
var refusals = []string{
	unix.EPERM.Error(), unix.EACCES.Error(), errNothingGained.Error(), unix.EROFS.Error(),
}

// quickExit spares each helper the second that the race detector waits before it exits.
const quickExit = "GORACE=atexit_sleep_ms=0"

// needAll skips a test that needs Landlock and filters. TestDropOnPoorKernels tests what holds without them.
func needAll(t *testing.T) {
	t.Helper()
	if noLandlock() != nil || noFilter() != nil {
		lab.KernelLacks(t, "Landlock (Linux 5.13), and filters for this processor's system calls")
	}
}

func TestDropToUser(t *testing.T) {
	lab.NeedRoot(t)
	needAll(t)
	cmd := helper(t, "attack", "nobody")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{4, 5}}}
	r := run(t, cmd)
	want := State{User: "nobody", UID: 65534, GID: 65534, Capabilities: "CAP_NET_ADMIN", NoNewPrivs: true}
	if r.Err != "" || !equal(r.State, want) {
		t.Errorf("got %+v, %s, want %+v", r.State, r.Err, want)
	}
	if r.State.Landlock == 0 || r.State.Calls == 0 {
		t.Errorf("got %+v, want Landlock and a filter: does this kernel have them?", r.State)
	}
	allRefused(t, r, nil)
}

// TestDropWithoutUser drops without a system user: the process becomes a user without a name.
func TestDropWithoutUser(t *testing.T) {
	lab.NeedRoot(t)
	needAll(t)
	cmd := helper(t, "attack", "no-such-user")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{4, 5}}}
	r := run(t, cmd)
	if r.Err != "" || r.State.UID != Unnamed || r.State.GID != Unnamed || r.State.User != strconv.Itoa(Unnamed) ||
		len(r.State.Notes) != 1 ||
		!strings.Contains(r.State.Notes[0], "useradd --system --no-create-home --shell /usr/sbin/nologin no-such-user") {
		t.Errorf("got %+v, %s, want the user without a name and a note", r.State, r.Err)
	}
	allRefused(t, r, nil)
}

// seeing returns the command as run with these additional lines in /etc/passwd and /etc/group.
func seeing(t *testing.T, cmd *exec.Cmd, passwd, group string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	files := make(map[string]string)
	for name, line := range map[string]string{"passwd": passwd, "group": group} {
		text := lab.Value(os.ReadFile("/etc/" + name))(t)
		files["/etc/"+name] = filepath.Join(dir, name)
		lab.Must(t, os.WriteFile(files["/etc/"+name], append(text, line+"\n"...), 0o644))
	}
	return lab.See(cmd, files)
}

// TestNobodyStaysRoot: uid 0 owns most files, and so does gid 0. A drop leaves neither, if the process can become
// another user.
func TestNobodyStaysRoot(t *testing.T) {
	lab.NeedRoot(t)
	lab.NeedOwnRoot(t)
	number := strconv.Itoa(Unnamed)
	many := []syscall.SysProcIDMap{{HostID: 0, Size: 1000}}
	ambient := []uintptr{uintptr(cap.NET_ADMIN), uintptr(cap.NET_RAW)}
	for _, test := range []struct {
		name, user, passwd, group string
		attr                      syscall.SysProcAttr
		want                      string
	}{
		{name: "the system user has uid 0", user: "half", passwd: "half:x:0:64123::/:/bin/false", want: "user half is root"},
		{name: "the system user has gid 0", user: "half", passwd: "half:x:64123:0::/:/bin/false", want: "user half is root"},
		{name: "another has the number", user: "no-such-user", passwd: "other:x:" + number + ":64123::/:/bin/false",
			want: "useradd --system"},
		{name: "a group has the number", user: "no-such-user", group: "other:x:" + number + ":", want: "useradd --system"},
		{name: "a namespace without the number", user: "no-such-user",
			attr: syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: many, GidMappings: many},
			want: "useradd --system"},
		{name: "a namespace without the system user", user: "nobody",
			attr: syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: many, GidMappings: many},
			want: "must not stay root"},
		{name: "root in another group, and nobody to become", user: "no-such-user",
			attr: syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: many, GidMappings: many,
				Credential: &syscall.Credential{Gid: 5, NoSetGroups: true}}, want: "must not stay root (uid 0, gid 5)"},
		{name: "started as a user in the group of root", user: "no-such-user",
			attr: syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 64123, Gid: 0, NoSetGroups: true},
				AmbientCaps: ambient}, want: "must not stay root"},
		{name: "started as the system user in the group of root", user: "nobody",
			attr: syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 0}, AmbientCaps: ambient},
			want: "must not stay root"},
		{name: "the group of root beside its own", user: "nobody",
			attr: syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{0}},
				AmbientCaps: ambient}, want: "group of root"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := helper(t, "drop", test.user)
			cmd.SysProcAttr = &test.attr
			if test.passwd != "" || test.group != "" {
				cmd = seeing(t, cmd, test.passwd, test.group)
			}
			r := run(t, cmd)
			if !strings.Contains(r.Err, test.want) || !equal(r.State, State{}) {
				t.Errorf("got %+v, %s, want %q", r.State, r.Err, test.want)
			}
		})
	}
}

// TestAttacksAreReal tries the same without the drop: an attack that fails then proves nothing.
func TestAttacksAreReal(t *testing.T) {
	lab.NeedRoot(t)
	r := run(t, helper(t, "attack undropped", "nobody"))
	for what, err := range r.Results {
		if err != "" {
			t.Errorf("%s fails even without the drop: %s", what, err)
		}
	}
}

// TestDropInUserNamespace drops where the system user has no number and the groups cannot be cleared, as in the
// demonstration when an ordinary user runs it.
func TestDropInUserNamespace(t *testing.T) {
	lab.NeedNamespaces(t)
	lab.NeedOwnRoot(t)
	for user, want := range map[string]string{"nobody": "nobody has no number in this user namespace",
		"no-such-user": "useradd --system"} {
		cmd := helper(t, "drop", user)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		r := run(t, cmd)
		notes := strings.Join(r.State.Notes, "\n")
		if r.Err != "" || r.State.UID != 0 || !strings.Contains(notes, want) ||
			!strings.Contains(notes, "the only user of this namespace") {
			t.Errorf("%s: got %+v, %s, want uid 0 and a note", user, r.State, r.Err)
		}
	}
}

// TestDropWhereGroupsStay starts with groups in a user namespace that denies setgroups.
func TestDropWhereGroupsStay(t *testing.T) {
	lab.NeedRoot(t)
	lab.NeedOwnRoot(t)
	cmd := helper(t, "drop", "nobody")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}},
	}
	groups := lab.Value(syscall.Getgroups())(t)
	defer syscall.Setgroups(groups)
	for _, test := range []struct {
		groups []int
		want   string
	}{{[]int{4, 5}, "groups [65534] stay"}, {[]int{0}, "groups [0] stay"}} {
		lab.Must(t, syscall.Setgroups(test.groups))
		again := *cmd
		r := run(t, &again)
		if r.Err != "" || !strings.Contains(strings.Join(r.State.Notes, "\n"), test.want) {
			t.Errorf("with groups %v: got %+v, %s, want a note on them", test.groups, r.State, r.Err)
		}
	}
}

// TestDropClearsGroups: a process that is already the user, and can clear its groups, has none afterwards.
func TestDropClearsGroups(t *testing.T) {
	lab.NeedRoot(t)
	cmd := helper(t, "drop", "nobody")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{0, 64124}},
		AmbientCaps: []uintptr{uintptr(cap.NET_ADMIN), uintptr(cap.NET_RAW), uintptr(cap.SETGID)},
	}
	if r := run(t, cmd); r.Err != "" || strings.Contains(strings.Join(r.State.Notes, "\n"), "groups") {
		t.Errorf("got %+v, %s, want no groups", r.State, r.Err)
	}
}

// TestDropFromPartOfTheUser: a process that already has the user's group, or groups that it cannot give up, still
// changes to the user, and keeps only those.
func TestDropFromPartOfTheUser(t *testing.T) {
	lab.NeedRoot(t)
	cmd := helper(t, "drop", "nobody")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 0, Gid: 65534}}
	if r := run(t, cmd); r.Err != "" || r.State.UID != 65534 || r.State.GID != 65534 {
		t.Errorf("root in its group: got %+v, %s", r.State, r.Err)
	}
	for _, groups := range [][]uint32{{}, {64124, 64125}} {
		cmd := helper(t, "drop", "nobody")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: 65534, Gid: 65534, Groups: groups},
			AmbientCaps: []uintptr{uintptr(cap.NET_ADMIN), uintptr(cap.NET_RAW)},
		}
		r := run(t, cmd)
		if stay := strings.Contains(strings.Join(r.State.Notes, "\n"), "groups"); r.Err != "" || stay != (len(groups) > 0) {
			t.Errorf("with groups %v: got %+v, %s", groups, r.State, r.Err)
		}
	}
}

// TestDropWhenStartedAsTheUser is the start by a unit with User= and ambient capabilities.
func TestDropWhenStartedAsTheUser(t *testing.T) {
	lab.NeedRoot(t)
	needAll(t)
	for _, user := range []string{"nobody", "daemon"} {
		cmd := helper(t, "attack", user)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
			AmbientCaps: []uintptr{uintptr(cap.NET_ADMIN), uintptr(cap.NET_RAW)},
		}
		r := run(t, cmd)
		notes := strings.Join(r.State.Notes, "\n")
		if r.Err != "" || r.State.UID != 65534 || !strings.Contains(notes, "CAP_SETPCAP was not given") {
			t.Errorf("%s: got %+v, %s, want uid 65534 and a note", user, r.State, r.Err)
		}
		if got, want := strings.Contains(notes, "for a start as root"), user != "nobody"; got != want {
			t.Errorf("%s: note on the user: got %v, want %v: %s", user, got, want, notes)
		}
		allRefused(t, r, []string{"raise inheritable", "raise ambient", "bounding set"})
	}
}

func TestDropRefuses(t *testing.T) {
	lab.NeedRoot(t)
	lab.NeedOwnRoot(t)
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	for _, test := range []struct {
		name, user, want string
		as               *syscall.Credential
		caps             []uintptr
		without          []syscall.SysProcIDMap // setgroups, in a namespace
	}{
		{name: "root as the system user", user: "root", want: "user root is root"},
		{name: "nothing to keep", user: "nobody", as: nobody, want: "keeping CAP_NET_ADMIN only"},
		{name: "groups that nobody may clear", user: "nobody", without: []syscall.SysProcIDMap{{Size: 65536}},
			want: "clearing the groups"},
	} {
		cmd := helper(t, "drop", test.user)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: test.as, AmbientCaps: test.caps}
		if test.without != nil {
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = test.without, test.without
		}
		r := run(t, cmd)
		if !strings.Contains(r.Err, test.want) || !equal(r.State, State{}) {
			t.Errorf("%s: got %+v, %s, want %q", test.name, r.State, r.Err, test.want)
		}
	}
}

func TestRequire(t *testing.T) {
	lab.NeedRoot(t)
	for _, test := range []struct {
		task string
		caps []uintptr
		want string
	}{
		{"require", nil, "lacking CAP_NET_ADMIN and CAP_NET_RAW:"},
		{"require", []uintptr{uintptr(cap.NET_ADMIN)}, "lacking CAP_NET_RAW:"},
		{"require", []uintptr{uintptr(cap.NET_RAW)}, "lacking CAP_NET_ADMIN:"},
		{"require", []uintptr{uintptr(cap.NET_ADMIN), uintptr(cap.NET_RAW)}, ""},
		{"require for bound sockets", []uintptr{uintptr(cap.NET_ADMIN)}, ""},
		{"require for bound sockets", []uintptr{uintptr(cap.NET_RAW)}, "lacking CAP_NET_ADMIN:"},
	} {
		cmd := helper(t, test.task, "")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: test.caps,
		}
		r := run(t, cmd)
		if !strings.Contains(r.Err, test.want) || (r.Err == "") != (test.want == "") || r.Denied != (test.want != "") {
			t.Errorf("with %v: got %q, want %q", test.caps, r.Err, test.want)
		}
	}
}

func allRefused(t *testing.T, r report, except []string) {
	t.Helper()
	if len(r.Results) < allThreads*len(attacks("", 0)) || len(r.Results)%allThreads != 0 {
		t.Errorf("%d results of %d threads", len(r.Results), allThreads)
	}
	for what, err := range r.Results {
		name, _, _ := strings.Cut(what, " on ")
		if slices.Contains(except, name) {
			continue
		}
		if err == "" {
			t.Errorf("%s succeeded", what)
		}
		if !slices.ContainsFunc(refusals, func(s string) bool { return strings.HasSuffix(err, s) }) && err != "" {
			t.Errorf("%s failed for another reason: %s", what, err)
		}
	}
	for what, err := range r.Works {
		if err != "" {
			t.Errorf("%s no longer works: %s", what, err)
		}
	}
	if want := 6; len(r.Works) != want && r.State.Capabilities != "" {
		t.Errorf("tried only %v", r.Works)
	}
}

// helper is this program in another part, which runs in a network namespace.
func helper(t *testing.T, part, user string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SANDBOX_HELPER="+part, "SANDBOX_USER="+user, quickExit)
	cmd.Stderr = os.Stderr
	if !strings.HasPrefix(part, "attack") {
		return cmd
	}
	victim := exec.Command("/proc/self/exe")
	victim.Env = append(os.Environ(), "SANDBOX_HELPER=victim")
	out := lab.Value(victim.StdoutPipe())(t)
	lab.Must(t, victim.Start())
	t.Cleanup(func() {
		_ = victim.Process.Kill()
		_ = victim.Wait()
	})
	_, err := io.ReadFull(out, make([]byte, len("ready")))
	lab.Must(t, err)
	cmd.Env = append(cmd.Env, "SANDBOX_DIR="+prepare(t), fmt.Sprintf("SANDBOX_VICTIM=%d", victim.Process.Pid))
	return cmd
}

// prepare makes a directory of another user, with a file that only that user may read, and three copies of this
// program: plain, set-user-id root, and with file capabilities.
func prepare(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	lab.Must(t, os.Chmod(filepath.Dir(dir), 0o755))
	lab.Must(t, os.Chmod(dir, 0o755))
	self := lab.Value(os.ReadFile("/proc/self/exe"))(t)
	for _, name := range []string{"plain", "setuid", "filecaps"} {
		lab.Must(t, os.WriteFile(filepath.Join(dir, name), self, 0o755))
	}
	lab.Must(t, os.Chmod(filepath.Join(dir, "setuid"), os.ModeSetuid|0o755))
	set := lab.Value(cap.FromText("cap_setuid,cap_net_raw+p"))(t)
	lab.Must(t, set.SetFile(filepath.Join(dir, "filecaps")))
	lab.Must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("secret"), 0o600))
	lab.Must(t, os.WriteFile(filepath.Join(dir, "open"), nil, 0o600))
	lab.Must(t, os.Chmod(filepath.Join(dir, "open"), 0o666))
	for _, sub := range []string{"read", "write", "anybodys"} {
		prepareOpen(t, filepath.Join(dir, sub))
	}
	lab.Must(t, os.Chown(filepath.Join(dir, "file"), 4242, 4242))
	lab.Must(t, os.Chown(dir, 4242, 4242))
	return dir
}

// prepareOpen makes a directory that everyone can write to, with files that belong to nobody.
func prepareOpen(t *testing.T, dir string) {
	t.Helper()
	lab.Must(t, os.Mkdir(dir, 0o700))
	lab.Must(t, os.Chmod(dir, 0o777))
	files := []string{"file"}
	for i := range allThreads {
		files = append(files, gone(i))
	}
	for _, name := range files {
		path := filepath.Join(dir, name)
		lab.Must(t, os.WriteFile(path, nil, 0o600))
		lab.Must(t, os.Chmod(path, 0o666))
		lab.Must(t, os.Chown(path, 65534, 65534))
	}
}

func run(t *testing.T, cmd *exec.Cmd) report {
	t.Helper()
	h := lab.New(t, "sandbox")[0]
	out := new(bytes.Buffer)
	cmd.Stdout = out
	lab.Must(t, h.Start(cmd))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var r report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	return r
}

func equal(a, b State) bool {
	return a.User == b.User && a.UID == b.UID && a.GID == b.GID && a.Capabilities == b.Capabilities &&
		a.NoNewPrivs == b.NoNewPrivs && slices.Equal(a.Notes, b.Notes)
}
