package cli

import (
	"strconv"

	"github.com/spf13/cobra"
)

// Exit codes of a command that runs another command, for when the other one did not run. These are codes that commands
// seldom use themselves: those of timeout(1) and env(1).
const (
	NotRun   = 125 // our own failure, of any kind
	NoPermit = 126 // the command exists but cannot be run
	NotFound = 127 // no such command
)

// own is the annotation of OwnFailures.
const own = "own-failures"

// OwnFailures makes every failure of the command itself exit with code, including misuse and refusals: other codes have
// a meaning of their own, such as that of the command that it runs. An Exit without an Err carries such a code and is
// unchanged, as are NoPermit and NotFound.
func OwnFailures(cmd *cobra.Command, code int) {
	if cmd.Annotations == nil {
		cmd.Annotations = make(map[string]string)
	}
	cmd.Annotations[own] = strconv.Itoa(code)
}

// ownCode returns the exit with the code that its command uses for it.
func ownCode(cmd *cobra.Command, exit *Exit) *Exit {
	if cmd == nil || exit.Err == nil || exit.Code >= NotRun {
		return exit
	}
	code, err := strconv.Atoi(cmd.Annotations[own])
	if err != nil {
		return exit // it has none of its own
	}
	return &Exit{Code: code, Err: exit.Err, Hint: exit.Hint, More: exit.More}
}
