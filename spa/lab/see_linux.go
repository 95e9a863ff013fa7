package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// sees lists, in the environment of this program when it must become another one, the files that it should see.
const sees = "SALLYPORT_LAB_SEES"

// See makes the command and its children see other files and directories in place of the machine's own: files maps each
// place to the path that is seen there. Both must exist and be of the same kind. Other processes are not affected: the
// command runs in its own mount namespace, and two commands that see the same path share what they write there.
//
// The test's program mounts the files and becomes the command, so its TestMain must begin with [Main] or [Become]. The
// environment is this process's current one, unless cmd.Env is set.
func See(cmd *exec.Cmd, files map[string]string) *exec.Cmd {
	list, err := json.Marshal(files)
	if err != nil {
		panic(err) // strings always marshal
	}
	cmd.Args = append([]string{os.Args[0], cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/proc/self/exe"
	cmd.Env = append(cmd.Environ(), sees+"="+string(list))
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Unshareflags |= unix.CLONE_NEWNS
	return cmd
}

// Become returns at once, except in a process that [See] or [Lacking] made: there it does not return.
func Become() {
	list, calls := os.Getenv(sees), os.Getenv(lacks)
	switch {
	case list != "":
		os.Unsetenv(sees)
		fmt.Fprintln(os.Stderr, "lab: becoming", os.Args[1:], become(list))
	case calls != "":
		os.Unsetenv(lacks)
		fmt.Fprintln(os.Stderr, "lab: becoming", os.Args[1:], lack(strings.Fields(calls)))
	default:
		return
	}
	os.Exit(125)
}

// become mounts the files and runs the command in place of this program.
func become(list string) error {
	var files map[string]string
	if err := json.Unmarshal([]byte(list), &files); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts to this process: %w", err)
	}
	for _, place := range slices.Sorted(maps.Keys(files)) { // a directory before its contents
		if err := unix.Mount(files[place], place, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", files[place], place, err)
		}
	}
	return unix.Exec(os.Args[1], os.Args[1:], os.Environ())
}
