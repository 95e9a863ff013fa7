package cli

import "github.com/spf13/cobra"

// How a command that runs another one, or stands in for it, ends where that other one
// has not run: by codes that it seldom uses itself, those of timeout(1) and env(1).
const (
	NotRun   = 125 // a failure of our own, of any kind
	NoPermit = 126 // the other command is there and cannot be run
	NotFound = 127 // there is no such command
)

// own is the annotation of OwnFailures.
const own = "own-failures"

// OwnFailures makes all failures of a command's own end it with NotRun, misuse and
// refusals too, since any other code is that of the command that it runs. An Exit
// without an Err, which tells such a code, is left as it is, and so are NoPermit and NotFound.
func OwnFailures(cmd *cobra.Command) {
	if cmd.Annotations == nil {
		cmd.Annotations = make(map[string]string)
	}
	cmd.Annotations[own] = "true"
}

// ownCode is an exit with the code that its command uses for it.
func ownCode(cmd *cobra.Command, exit *Exit) *Exit {
	if cmd == nil || cmd.Annotations[own] == "" || exit.Err == nil || exit.Code >= NotRun {
		return exit
	}
	return &Exit{Code: NotRun, Err: exit.Err, Hint: exit.Hint, More: exit.More}
}
