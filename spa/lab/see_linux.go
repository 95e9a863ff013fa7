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

// sees is set in the environment of this program where it is to become another one: what that sees.
const sees = "SALLYPORT_LAB_SEES"

// See has the command, and what it starts, see other files and directories in the places of
// the machine's own: paths by the places at which they are seen. Both have to be
// there, and of the same kind. Nothing changes for anybody else: the command runs in a mount namespace of
// its own, and two commands that see the same path share what they write there.
//
// The program of the test puts the files in place and becomes the command, so its TestMain
// has to begin with [Main] or [Become]. The environment is that of this process now, unless cmd.Env is set.
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

// become puts the files in place and runs the command instead of this program.
func become(list string) error {
	var files map[string]string
	if err := json.Unmarshal([]byte(list), &files); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keeping mounts to this process: %w", err)
	}
	for _, place := range slices.Sorted(maps.Keys(files)) { // a directory before what is in it
		if err := unix.Mount(files[place], place, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", files[place], place, err)
		}
	}
	return unix.Exec(os.Args[1], os.Args[1:], os.Environ())
}
