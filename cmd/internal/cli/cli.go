// Package cli is what Sallyport's programs share: exit codes, error messages, and common flags.
//
// Results go to standard output and everything else to standard error. An error is one line, and each hint another:
//
//	spa-client: error: gw refused ssh: the key may not open it
//	spa-client: hint: ask the gateway's administrator for it
//
// A program that stops because it was interrupted (Ctrl-C, SIGTERM) prints no error and exits with 128 plus the
// signal's number, as a shell reports it: 130 or 143. If it leaves something unfinished, it prints a note that says
// what, and how to continue. A second signal kills it at once.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"sallyport/keys/quote"
)

// Exit codes.
const (
	Done     = 0 // the command did what was asked
	Failed   = 1 // it tried and failed
	Misused  = 2 // wrong arguments: nothing was tried
	Refused  = 3 // the server refused
	NoAnswer = 4 // the server did not answer
)

// Exit is an error with an exit code and advice.
type Exit struct {
	Code int      // zero: Failed
	Err  error    // nil: everything has been printed already
	Hint string   // empty for none
	More []string // further hints, one per line
}

// Error returns the wrapped error's text.
func (e *Exit) Error() string {
	if e.Err == nil {
		return "exit"
	}
	return e.Err.Error()
}

// Unwrap returns the wrapped error.
func (e *Exit) Unwrap() error { return e.Err }

// Fail returns an error with exit code Failed and a hint.
func Fail(err error, hint string) error { return &Exit{Code: Failed, Err: err, Hint: hint} }

// Misuse returns an error with exit code Misused and a hint: the command was called in a way that cannot work.
func Misuse(err error, hint string) error { return &Exit{Code: Misused, Err: err, Hint: hint} }

// Main runs a command tree with the program's arguments, prints errors, and returns the exit code. Everything that
// fails before a command's own RunE begins is misuse: flags, arguments, unknown commands.
func Main(name string, root *cobra.Command) int {
	ctx, stop := signalled()
	defer stop()
	return run(ctx, name, root, os.Args[1:])
}

// run is Main with its environment as arguments.
func run(ctx context.Context, name string, root *cobra.Command, args []string) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.Version = Version()
	root.SetVersionTemplate(name + " {{.Version}}\n")
	began := watchBegin(root)
	cmd, err := execute(ctx, name, root, args)
	if err == nil {
		return Done
	}
	if code, yes := interrupted(ctx, err); yes {
		return code
	}
	exit := ownCode(cmd, asExit(err, name, cmd, *began))
	if exit.Err != nil {
		complain(root, name, exit)
	}
	return exit.Code
}

// execute runs the command that the arguments name, unless an argument may contain a secret.
func execute(ctx context.Context, name string, root *cobra.Command, args []string) (*cobra.Command, error) {
	for _, arg := range args {
		if LooksLikeToken(arg) {
			cmd, _, _ := root.Find(args) // the command may have its own exit codes; nil if there is none
			return cmd, Misuse(errors.New("an argument looks like an enrolment token"),
				"every user of this machine can read arguments: pass the token on standard input or in a file; if others use "+
					"this machine, ask for a new token")
		}
	}
	if !root.Runnable() && namesNothing(root, args) {
		return root, Misuse(errors.New("no command given"), name+" --help lists the commands")
	}
	root.SetArgs(args)
	return root.ExecuteContextC(ctx)
}

// namesNothing reports whether the arguments are only flags, without one that does something itself (--help,
// --version).
func namesNothing(root *cobra.Command, args []string) bool {
	cmd, _, err := root.Find(args)
	if err != nil || cmd != root {
		return false
	}
	root.InitDefaultHelpFlag()
	root.InitDefaultVersionFlag()
	if err := root.ParseFlags(args); err != nil {
		return false // reported when they are parsed again
	}
	return root.Flags().NArg() == 0 && !root.Flags().Changed("help") && !root.Flags().Changed("version")
}

// watchBegin makes every command record that it has begun: that distinguishes its own errors from cobra's without
// comparing texts.
func watchBegin(root *cobra.Command) *bool {
	began := new(bool)
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if own := c.RunE; own != nil {
			c.RunE = func(cmd *cobra.Command, args []string) error {
				*began = true
				return own(cmd, args)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	return began
}

// asExit returns the Exit in an error, or a new one around it.
func asExit(err error, name string, cmd *cobra.Command, began bool) *Exit {
	var exit *Exit
	if errors.As(err, &exit) {
		return &Exit{Code: max(exit.Code, Failed), Err: exit.Err, Hint: exit.Hint, More: exit.More}
	}
	if began {
		return &Exit{Code: Failed, Err: err}
	}
	path := name
	if cmd != nil {
		path = cmd.CommandPath()
	}
	return misused(err, path)
}

// misused turns cobra's message into an error and a hint of one line each.
func misused(err error, path string) *Exit {
	text, suggestions, _ := strings.Cut(err.Error(), "\n\nDid you mean this?\n")
	hint := path + " --help shows how it is used"
	if names := strings.Fields(suggestions); len(names) > 0 {
		hint = "did you mean " + strings.Join(names, " or ") + "?"
	}
	return &Exit{Code: Misused, Err: errors.New(strings.TrimSpace(text)), Hint: hint}
}

// complain prints an error and its hints.
func complain(root *cobra.Command, name string, exit *Exit) {
	w := root.ErrOrStderr()
	for line := range strings.Lines(exit.Err.Error()) { // joined errors take a line each
		fmt.Fprintf(w, "%s: %s %s\n", name, paint(w, red, "error:"), quote.Printable(strings.TrimRight(line, "\n")))
	}
	if exit.Hint != "" {
		for _, hint := range append([]string{exit.Hint}, exit.More...) {
			fmt.Fprintf(w, "%s: %s %s\n", name, paint(w, cyan, "hint:"), quote.Printable(hint))
		}
	}
}

// Warn prints a problem that does not end the command to standard error.
func Warn(cmd *cobra.Command, format string, args ...any) {
	w := cmd.ErrOrStderr()
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(w, "%s: %s %s\n", cmd.Root().Name(), paint(w, yellow, "warning:"),
			quote.Printable(strings.TrimRight(line, "\n")))
	}
}

// Note prints useful information to standard error.
func Note(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: note: %s\n", cmd.Root().Name(), quote.Printable(fmt.Sprintf(format, args...)))
}

// LooksLikeToken reports whether an argument, or the value in --flag=value, may be an enrolment token or the beginning
// of one: base64url after "spa1", "spa2" or "spar1" that cannot be the name of a service or gateway.
func LooksLikeToken(arg string) bool {
	if flag, value, ok := strings.Cut(arg, "="); ok && strings.HasPrefix(flag, "-") {
		arg = value
	}
	arg = strings.TrimSpace(arg)
	if !strings.HasPrefix(arg, "spa1") && !strings.HasPrefix(arg, "spa2") && !strings.HasPrefix(arg, "spar1") {
		return false
	}
	const lower, upper = "abcdefghijklmnopqrstuvwxyz0123456789-", "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"
	if strings.Trim(arg, lower+upper) != "" {
		return false // another character: a file name
	}
	return len(arg) > 32 || strings.ContainsAny(arg, upper)
}

// stopped is the cause of a context that a signal ended.
type stopped struct{ signal syscall.Signal }

// Error names the signal.
func (s stopped) Error() string { return "stopped by a signal: " + s.signal.String() }

// signalled returns a context that the first SIGINT or SIGTERM ends. Afterwards signals have their usual effect, so a
// second one kills the program. A signal that the program was started to ignore stays ignored.
func signalled() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, Heeded(syscall.SIGTERM, os.Interrupt)...)
	go func() {
		select {
		case s := <-signals:
			signal.Stop(signals)
			number, _ := s.(syscall.Signal)
			cancel(stopped{number})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// Heeded returns the first signal and those of the others that this program was not started to ignore, as by nohup(1)
// or as a background job of a script. Notifying for an ignored signal would enable it again, even in child processes.
func Heeded(first os.Signal, others ...os.Signal) []os.Signal {
	heeded := []os.Signal{first}
	for _, s := range others {
		if !signal.Ignored(s) {
			heeded = append(heeded, s)
		}
	}
	return heeded
}

// interrupted returns the exit code of a command that stopped because of a signal, and false if it failed for another
// reason.
func interrupted(ctx context.Context, err error) (int, bool) {
	var by stopped
	if !errors.Is(err, context.Canceled) || !errors.As(context.Cause(ctx), &by) {
		return 0, false
	}
	return 128 + int(by.signal), true
}

// Version returns the version that the Go toolchain built into the program.
func Version() string {
	v := "devel"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		v = info.Main.Version
	}
	return fmt.Sprintf("%s (%s %s/%s)", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
