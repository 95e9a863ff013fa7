package lab

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// recorder is a test that records how it would have ended.
type recorder struct {
	testing.TB
	said string
}

func (r *recorder) Helper()           {}
func (r *recorder) Skip(args ...any)  { r.said = "skip: " + fmt.Sprint(args...) }
func (r *recorder) Fatal(args ...any) { r.said = "fail: " + fmt.Sprint(args...) }
func (r *recorder) Fatalf(format string, args ...any) {
	r.said = "fail: " + fmt.Sprintf(format, args...)
}

// helper is this program again, as TestHelper.
func helper(part string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelper$")
	cmd.Env = append(os.Environ(), "LAB_HELPER="+part)
	return cmd
}

// stay waits until the process is killed. The runtime ends a program in which every goroutine is blocked, but not one
// in a system call.
func stay() {
	for {
		_ = unix.Pause()
	}
}

// TestHelper is not a test: it is what the processes run that the tests start.
func TestHelper(t *testing.T) {
	switch os.Getenv("LAB_HELPER") {
	case "":
		return
	case "namespace":
		fmt.Print(namespace(t))
	case "stay":
		stay()
	case "say and stay":
		os.NewFile(3, "pipe").WriteString("!")
		stay()
	case "host":
		h := Value(NewHost("h"))(t)
		cmd := helper("say and stay")
		pipe := os.NewFile(3, "pipe")
		cmd.ExtraFiles = []*os.File{pipe}
		Must(t, h.Start(cmd))
		pipe.Close()
		stay()
	case "refused":
		Must(t, sysctl("user.max_net_namespaces", "0"))
		Must(t, sysctl("user.max_user_namespaces", "0"))
		fmt.Println(Reexec())
	case "skip":
		r := &recorder{TB: t}
		NeedProgram(r, "no-such-program", "apt-get install that it")
		NeedProgram(r, "no-such-program", "apt-get install that it")
		Skip(r, "needs another program: apt-get install more")
		Skip(r, "needs\nsomething else")
		os.Exit(7)
	case "skip nothing":
		os.Exit(7)
	case "succeed":
	case "reexec":
		fmt.Println(Reexec())
	}
	os.Exit(0)
}
