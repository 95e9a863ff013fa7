// Package cli is what Sallyport's programs share: how they end, how they
// complain, and the flags that mean the same in each of them.
//
// Results go to standard output and everything else to standard error. An error
// is a line, and what to do about it another:
//
//	spa-client: error: gw refused ssh: the key may not open it
//	spa-client: hint: ask the gateway's administrator for it
//
// A program that is interrupted (Ctrl-C, SIGTERM) and stops because of it says
// nothing and ends with 128 plus the signal's number, as a shell would report it:
// 130 or 143. A second signal ends it at once.
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

// How a program ends.
const (
	Done     = 0 // what was asked for is done
	Failed   = 1 // it was tried and failed
	Misused  = 2 // it was asked for wrongly: nothing was tried
	Refused  = 3 // the server said no
	NoAnswer = 4 // the server said nothing
)

// Exit is an error that knows how the program ends and what to do about it.
type Exit struct {
	Code int      // zero: Failed
	Err  error    // nil: everything has been said already, nothing is printed
	Hint string   // empty: there is none
	More []string // further hints, a line each
}

// Error is the wrapped error's text.
func (e *Exit) Error() string {
	if e.Err == nil {
		return "exit"
	}
	return e.Err.Error()
}

// Unwrap returns the wrapped error.
func (e *Exit) Unwrap() error { return e.Err }

// Fail says that the command failed, and what to do about it.
func Fail(err error, hint string) error { return &Exit{Code: Failed, Err: err, Hint: hint} }

// Misuse says that a command was called in a way that cannot work, and what to do instead.
func Misuse(err error, hint string) error { return &Exit{Code: Misused, Err: err, Hint: hint} }

// Main runs a command tree with the program's arguments and returns its exit
// code; it prints what went wrong. Whatever fails before a command's own RunE
// begins is misuse: flags, arguments, unknown commands.
func Main(name string, root *cobra.Command) int {
	ctx, stop := signalled()
	defer stop()
	return run(ctx, name, root, os.Args[1:])
}

// run is Main with its surroundings as arguments.
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

// execute runs what the arguments name, once they are known to hold no secret.
func execute(ctx context.Context, name string, root *cobra.Command, args []string) (*cobra.Command, error) {
	for _, arg := range args {
		if LooksLikeToken(arg) {
			cmd, _, _ := root.Find(args) // it may have codes of its own; nil where there is none
			return cmd, Misuse(errors.New("an argument looks like an enrolment token"),
				"every user of this machine can read arguments: give the token on standard input or in a file; if others use "+
					"this machine, ask for a new token")
		}
	}
	if !root.Runnable() && namesNothing(root, args) {
		return root, Misuse(errors.New("no command given"), name+" --help lists the commands")
	}
	root.SetArgs(args)
	return root.ExecuteContextC(ctx)
}

// namesNothing reports whether the arguments are flags alone, and none of them that is a command
// by itself.
func namesNothing(root *cobra.Command, args []string) bool {
	cmd, _, err := root.Find(args)
	if err != nil || cmd != root {
		return false
	}
	root.InitDefaultHelpFlag()
	root.InitDefaultVersionFlag()
	if err := root.ParseFlags(args); err != nil {
		return false // it is said when they are parsed for good
	}
	return root.Flags().NArg() == 0 && !root.Flags().Changed("help") && !root.Flags().Changed("version")
}

// watchBegin makes every command note that it has begun, which tells its own
// errors from cobra's without looking at their texts.
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

// asExit finds the Exit in an error, or makes one of it.
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

// misused turns cobra's words into an error and a hint of one line each.
func misused(err error, path string) *Exit {
	text, suggestions, _ := strings.Cut(err.Error(), "\n\nDid you mean this?\n")
	hint := path + " --help shows how it is used"
	if names := strings.Fields(suggestions); len(names) > 0 {
		hint = "did you mean " + strings.Join(names, " or ") + "?"
	}
	return &Exit{Code: Misused, Err: errors.New(strings.TrimSpace(text)), Hint: hint}
}

// complain prints an error and its hint.
func complain(root *cobra.Command, name string, exit *Exit) {
	w := root.ErrOrStderr()
	for line := range strings.Lines(exit.Err.Error()) { // joined errors have a line each
		fmt.Fprintf(w, "%s: %s %s\n", name, paint(w, red, "error:"), quote.Printable(strings.TrimRight(line, "\n")))
	}
	if exit.Hint != "" {
		for _, hint := range append([]string{exit.Hint}, exit.More...) {
			fmt.Fprintf(w, "%s: %s %s\n", name, paint(w, cyan, "hint:"), quote.Printable(hint))
		}
	}
}

// Warn prints to standard error something that is wrong but does not end the command.
func Warn(cmd *cobra.Command, format string, args ...any) {
	w := cmd.ErrOrStderr()
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(w, "%s: %s %s\n", cmd.Root().Name(), paint(w, yellow, "warning:"),
			quote.Printable(strings.TrimRight(line, "\n")))
	}
}

// Note prints to standard error something that is good to know.
func Note(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: note: %s\n", cmd.Root().Name(), quote.Printable(fmt.Sprintf(format, args...)))
}

// LooksLikeToken reports whether an argument, or the value in --flag=value, can
// be an enrolment token or the beginning of one: base64url after "spa1", and
// neither a service's nor a gateway's name.
func LooksLikeToken(arg string) bool {
	if flag, value, ok := strings.Cut(arg, "="); ok && strings.HasPrefix(flag, "-") {
		arg = value
	}
	arg = strings.TrimSpace(arg)
	if !strings.HasPrefix(arg, "spa1") {
		return false
	}
	const lower, upper = "abcdefghijklmnopqrstuvwxyz0123456789-", "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"
	if strings.Trim(arg, lower+upper) != "" {
		return false // another character: a file's name
	}
	return len(arg) > 32 || strings.ContainsAny(arg, upper)
}

// stopped is why a context ended: a signal came.
type stopped struct{ signal syscall.Signal }

// Error names the signal.
func (s stopped) Error() string { return "stopped by a signal: " + s.signal.String() }

// signalled returns a context that the first SIGINT or SIGTERM ends. From then on
// signals have their usual effect, so a second one ends the program. One that whoever started
// the program has it ignore stays ignored.
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

// Heeded leaves out the signals that this program was started to ignore, as by nohup(1) or by a
// script in the background. Whoever waits for such a one makes it count again, and also in the
// programs that it starts. The first of the signals stays in any case.
func Heeded(first os.Signal, others ...os.Signal) []os.Signal {
	heeded := []os.Signal{first}
	for _, s := range others {
		if !signal.Ignored(s) {
			heeded = append(heeded, s)
		}
	}
	return heeded
}

// interrupted returns the exit code of a command that stopped because a signal
// told it to; one that failed for a reason of its own is not among them.
func interrupted(ctx context.Context, err error) (int, bool) {
	var by stopped
	if !errors.Is(err, context.Canceled) || !errors.As(context.Cause(ctx), &by) {
		return 0, false
	}
	return 128 + int(by.signal), true
}

// Version is what the Go toolchain wrote into the program.
func Version() string {
	v := "devel"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		v = info.Main.Version
	}
	return fmt.Sprintf("%s (%s %s/%s)", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
