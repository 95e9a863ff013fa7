package office

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"filippo.io/age"

	"sallyport/spa/fleet"
	"sallyport/spa/lab"
)

// TestKilledAct is not a test: it is the other process of TestKilled.
func TestKilledAct(t *testing.T) {
	act := acts[os.Getenv("OFFICE_ACT")]
	if act == nil {
		return
	}
	runtime.LockOSThread() // strace counts the system calls of each thread
	h := house{os.Getenv("OFFICE_DIR"), lab.Value(age.ParseHybridIdentity(os.Getenv("OFFICE_ME")))(t)}
	lab.Must(t, h.act(act, os.Getenv("OFFICE_TO")))
}

// TestKilled: whenever a command is killed between its writes, the office opens with the keys of all clients, the
// command can run again, and then everything is published with a higher serial than before.
func TestKilled(t *testing.T) {
	strace := lab.NeedProgram(t, "strace", "apt-get install strace")
	for name := range acts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			killed := 0
			for _, call := range []string{"linkat", "renameat", "unlinkat"} {
				for n := 1; killedAt(t, strace, name, call, n); n++ {
					killed++
				}
			}
			if killed == 0 {
				t.Error("it was never killed")
			}
		})
	}
}

// killedAt lets another process do an act, which is killed at its nth call of a kind. It returns false if there is
// none.
func killedAt(t *testing.T, strace, name, call string, n int) bool {
	h := newHouse(t)
	carol := lab.Value(age.GenerateHybridIdentity())(t)
	gateway := h.addGateways(t, 2)
	h.addClients(t, 3)
	to := t.TempDir()
	lab.Must(t, h.act(func(o *Office, v *Vault, to string) error { return o.AddAdmin(v, "carol", carol.Recipient()) }, to))
	lab.Must(t, h.act(acts["publish"], to))
	cmd := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e",
		fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n), os.Args[0], "-test.run", "^TestKilledAct$")
	cmd.Env = append(os.Environ(), "OFFICE_ACT="+name, "OFFICE_DIR="+h.dir, "OFFICE_TO="+to, "OFFICE_ME="+h.me.String())
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || !exit.Sys().(syscall.WaitStatus).Signaled() {
		t.Fatalf("%v: %s", err, out)
	}
	where := fmt.Sprintf("killed at %s %d", call, n)
	err = h.act(func(o *Office, v *Vault, _ string) error {
		_, err := o.keys(t.Context(), v)
		return err
	}, to)
	if err != nil {
		t.Fatalf("%s, the office does not open: %v", where, err)
	}
	highest := int64(0)
	for _, file := range lab.Value(filepath.Glob(to + "/*.bundle"))(t) {
		highest = max(highest, lab.Value(fleet.Parse(lab.Value(os.ReadFile(file))(t)))(t).Serial)
	}
	for _, again := range []string{name, "publish"} {
		if err := h.act(acts[again], to); err != nil {
			t.Fatalf("%s, %s does not run again: %v", where, again, err)
		}
	}
	o := lab.Value(Load(h.dir))(t)
	b := lab.Value(fleet.Parse(lab.Value(os.ReadFile(bundlePath(to, "gw1")))(t)))(t)
	lab.Must(t, fleet.Office{Fleet: o.Fleet, Key: o.Key}.Verify(b, "gw1"))
	if c := lab.Value(fleet.Open(b, gateway))(t); len(c.Clients) != 3 || b.Serial <= highest {
		t.Errorf("%s, then published: %d clients, serial %d after %d", where, len(c.Clients), b.Serial, highest)
	}
	v := lab.Value(o.Unlock(h.me))(t)
	if _, err := o.Unlock(carol); name == "remove" && (err == nil || len(o.Mismatches(v)) > 0) {
		t.Errorf("%s, the administrator is not removed: %v", where, err)
	}
	for i, k := range lab.Value(o.keys(t.Context(), v))(t) {
		if !k.current {
			t.Errorf("%s, the key of client %d is sealed to an earlier vault", where, i)
		}
	}
	return true
}
