package sandbox

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"sallyport/spa/lab"
)

const call386 = "call of 386"

// TestDropEndsAttackers: calls that only an attacker makes kill the process, on every thread.
func TestDropEndsAttackers(t *testing.T) {
	lab.NeedRoot(t)
	if noFilter() != nil {
		needAll(t)
	}
	names := slices.AppendSeq(slices.Collect(maps.Keys(fatal)), maps.Keys(otherInterfaces()))
	for _, name := range names {
		for _, when := range []string{"", " later"} {
			t.Run(name+when, func(t *testing.T) {
				t.Parallel()
				if name == call386 && !takes386(t) {
					lab.KernelLacks(t, "programs of 32 bits (IA32_EMULATION)")
				}
				cmd := helper(t, "fatal", "nobody")
				cmd.Env = append(cmd.Env, "SANDBOX_FATAL="+name+when)
				err := cmd.Run()
				status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
				if !ok || !status.Signaled() || status.Signal() != unix.SIGSYS {
					t.Errorf("got %v, want the end by SIGSYS", err)
				}
			})
		}
	}
}

// TestDropOnPoorKernels: if the kernel has no Landlock, no filters, or neither, that is reported, and user and
// capabilities alone still refuse what they did before.
func TestDropOnPoorKernels(t *testing.T) {
	lab.NeedRoot(t)
	const landlock, seccomp = unix.SYS_LANDLOCK_CREATE_RULESET, unix.SYS_SECCOMP
	for _, test := range []struct {
		lacks []int
		notes []string
	}{
		{[]int{landlock}, []string{"files are not restricted"}},
		{[]int{seccomp}, []string{"system calls are not filtered"}},
		{[]int{landlock, seccomp}, []string{"files are not restricted", "system calls are not filtered"}},
	} {
		t.Run(strings.Join(test.notes, " and "), func(t *testing.T) {
			if noLandlock() != nil && !slices.Contains(test.lacks, landlock) ||
				noFilter() != nil && !slices.Contains(test.lacks, seccomp) {
				needAll(t)
			}
			cmd := helper(t, "attack", "nobody")
			cmd.Env = append(cmd.Env, "SANDBOX_LACKS="+strings.Trim(fmt.Sprint(test.lacks), "[]"))
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{4, 5}}}
			r := run(t, cmd)
			if r.Err != "" || len(r.State.Notes) != len(test.notes) {
				t.Fatalf("got %+v, %s, want notes %v", r.State, r.Err, test.notes)
			}
			for i, note := range test.notes {
				if !strings.Contains(r.State.Notes[i], note) {
					t.Errorf("got note %q, want %q", r.State.Notes[i], note)
				}
			}
			if (r.State.Landlock == 0) != slices.Contains(test.lacks, landlock) ||
				(r.State.Calls == 0) != slices.Contains(test.lacks, seccomp) {
				t.Errorf("got %+v", r.State)
			}
			allRefused(t, r, nil)
		})
	}
}

// TestDropAll: the process that only holds a socket can do nothing at all. It stays root, who can access root's other
// processes: without Landlock only the filter prevents that.
func TestDropAll(t *testing.T) {
	lab.NeedRoot(t)
	if noFilter() != nil {
		needAll(t)
	}
	for _, lacks := range []string{strconv.Itoa(unix.SYS_LANDLOCK_CREATE_RULESET), ""} {
		if lacks == "" {
			needAll(t)
		}
		cmd := helper(t, "attack", "")
		cmd.Env = append(cmd.Env, "SANDBOX_PART=nothing", "SANDBOX_LACKS="+lacks)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{4, 5}}}
		r := run(t, cmd)
		if r.Err != "" || r.State.Capabilities != "" || r.State.Bounding != "" || !r.State.NoNewPrivs ||
			(r.State.Landlock == 0) != (lacks != "") || r.State.Calls == 0 {
			t.Errorf("lacking %q: got %+v, %s", lacks, r.State, r.Err)
		}
		allRefused(t, r, nil)
	}
}

// TestDropForPrograms: the process and its programs change the firewall and nothing else, whether root started it or a
// user with that privilege.
func TestDropForPrograms(t *testing.T) {
	lab.NeedRoot(t)
	needAll(t)
	for name, attr := range map[string]*syscall.SysProcAttr{"root": nil, "a user": {
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		AmbientCaps: []uintptr{uintptr(cap.NET_ADMIN), uintptr(cap.NET_RAW), uintptr(cap.SETPCAP)},
	}} {
		t.Run(name, func(t *testing.T) { dropForProgramsOf(t, attr) })
	}
}

func dropForProgramsOf(t *testing.T, attr *syscall.SysProcAttr) {
	cmd := helper(t, "attack with programs", "")
	cmd.SysProcAttr = attr
	cmd.Env = append(cmd.Env, "SANDBOX_PART=programs")
	r := run(t, cmd)
	const kept = "CAP_NET_ADMIN, CAP_NET_RAW"
	if r.Err != "" || r.State.Capabilities != kept || r.State.Bounding != kept || !r.State.NoNewPrivs ||
		r.State.Landlock == 0 || r.State.Calls == 0 {
		t.Errorf("got %+v, %s", r.State, r.Err)
	}
	// Needed by programs: to run, map code, read /proc, and use iptables' sockets.
	may := []string{"raise inheritable", "raise ambient", "bounding set", "raw socket", "exec file",
		"call: start a process", "call: socket",
		"call: socket of this host", "call: netlink socket", "call: make memory executable", "call: map executable memory",
		"call: limits", "file: look into a process"}
	if runtime.GOARCH == "386" {
		may = append(may, "packet socket") // C libraries make sockets by socketcall, and a filter cannot read its arguments
	}
	for name, err := range r.Results {
		if slices.Contains(may, name) {
			continue
		}
		if !slices.ContainsFunc(refusals, func(s string) bool { return strings.HasSuffix(err, s) }) {
			t.Errorf("%s: got %q, want it to be refused", name, err)
		}
	}
	if r.Works["program"] != "" {
		t.Errorf("a program does not work: %s\n%s", r.Works["program"], r.Program)
	}
	for _, line := range []string{
		"reading /etc/passwd: open /etc/passwd: permission denied",
		"CapPrm:\t0000000000003000", "CapBnd:\t0000000000003000", "NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !strings.Contains(r.Program, line) {
			t.Errorf("the program does not print %q:\n%s", line, r.Program)
		}
	}
}

// TestLandlockAlone: connections and signals to others are also refused without the system call filter, except for the
// process that must kill its programs.
func TestLandlockAlone(t *testing.T) {
	lab.NeedRoot(t)
	const scopes = 6 // the version that has rules for both
	if abi, _ := llsys.LandlockGetABIVersion(); abi < scopes {
		lab.KernelLacks(t, "Landlock rules for connections and signals (Linux 6.12)")
	}
	for part, want := range map[string]bool{"": true, "programs": false} {
		cmd := helper(t, "landlock", "")
		cmd.Env = append(cmd.Env, "SANDBOX_PART="+part)
		for what, err := range run(t, cmd).Results {
			if (err != "") != want {
				t.Errorf("%q: %s: got %q, want it refused: %v", part, what, err, want)
			}
		}
	}
}
