package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/spa"
)

func (a *app) execCommand() *cobra.Command {
	k := &knock{app: a, wait: true, quiet: true, patient: true}
	var duration durationFlag
	cmd := &cobra.Command{
		Use:   "exec SERVICE... -- COMMAND [ARGUMENT...]",
		Short: "Open services, wait until they answer, run a command",
		Long: `Exec asks the gateway to open services for this machine's address, waits until their
TCP ports accept connections, and runs a command. The command has standard input, output
and error to itself, and receives the signals that are sent to spa-client. No shell is
involved. Exec tries the port of a single service beside the knock if the gateway's last
answer said that the service admits several connections. Like connect, exec waits for a
gateway that has just started, and tries the port once if no answer comes.

Exit status: that of the command, or 128 plus the number of the signal that ended it;
127 there is no such command, 126 it cannot be run, 125 it was not run for any other
reason (refused, no answer, misused, the port accepts no connections).`,
		Example: `  spa-client exec ssh --host gw -- ssh gw.example.net uptime
  spa-client exec db --host gw --for 5m -- psql -h gw.example.net`,
		Args: execArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			path, err := find(args[dash])
			if err != nil {
				return err // before knocking: nothing would use the open port
			}
			if err := k.run(cmd, spa.TypeOpen, args[:dash], duration.value()); err != nil {
				return err
			}
			return execute(cmd.Context(), &exec.Cmd{Path: path, Args: args[dash:], Stdin: os.Stdin,
				Stdout: os.Stdout, Stderr: os.Stderr})
		},
		ValidArgsFunction: k.completeServices,
	}
	cli.OwnFailures(cmd, cli.NotRun)
	k.reach(cmd)
	cmd.Flags().Var(&duration, "for", "how long, such as 30s or 1h30m (default: the service's own)")
	return cmd
}

// execArgs checks that there are services, two dashes and a command.
func execArgs(cmd *cobra.Command, args []string) error {
	dash := cmd.ArgsLenAtDash()
	if dash < 0 || dash == len(args) {
		return errors.New("no command given: put it after --")
	}
	return serviceArgs(cmd, args[:dash])
}

// find looks up a command as a shell does.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return "", &cli.Exit{Code: cli.NotFound, Err: fmt.Errorf("command not found: %s", name)}
	}
	if err != nil {
		return "", &cli.Exit{Code: cli.NoPermit, Err: fmt.Errorf("running %s: %w", name, err)}
	}
	return path, nil
}

// execute runs a command to its end, passes signals on to it, and returns its exit status.
func execute(ctx context.Context, command *exec.Cmd) error {
	signals, stop := caught()
	defer stop()
	if err := ctx.Err(); err != nil { // a signal that came earlier
		return err
	}
	if err := command.Start(); err != nil {
		return &cli.Exit{Code: cli.NoPermit, Err: fmt.Errorf("running %s: %w", command.Path, err)}
	}
	ended := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		passSignals(command.Process, signals, ended)
	}()
	err := command.Wait()
	close(ended)
	<-passed
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("waiting for %s: %w", command.Path, err)
	}
	if code := status(command.ProcessState); code != 0 {
		return &cli.Exit{Code: code}
	}
	return nil
}

// passSignals passes each signal to a process until it has ended.
func passSignals(to *os.Process, signals <-chan os.Signal, ended <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			_ = to.Signal(s) // it may have ended by now
		case <-ended:
			return
		}
	}
}
