package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sallyport/spa/lab"
)

// workspace names, in the environment, the directory of the built programs when an example runs again as root of a user
// namespace, where there is no network to fetch modules from.
const workspace = "SALLYPORT_STAGE_DIR"

// A Stage has the hosts of a story, and a directory with their files.
type Stage struct {
	*Teller
	Dir     string
	Sees    map[string]string // files that programs see in place of the machine's, by place: see lab.See
	cable   *lab.Host         // the switch that joins the hosts
	hosts   []*Host
	servers []*Server
}

// Run builds programs of this module and tells a story with them. It leaves nothing behind.
func Run(ctx context.Context, tell *Teller, programs []string,
	story func(context.Context, *Stage) error) (err error) {
	lab.Become()
	dir := os.Getenv(workspace)
	if dir == "" {
		made, err := build(ctx, tell, programs)
		if err != nil {
			return err
		}
		dir = made
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Setenv(workspace, dir); err != nil {
		return err
	}
	if err := lab.Reexec(); err != nil {
		return err
	}
	began := time.Now()
	s := &Stage{Teller: tell, Dir: dir}
	if err := s.explain(story(ctx, s)); err != nil {
		return errors.Join(err, s.close())
	}
	if err := s.close(); err != nil {
		return err
	}
	tell.Heading("Every step was as promised.")
	tell.Say(fmt.Sprintf("It took %.0f seconds. Nothing is left of it: no process, no namespace, no file.",
		time.Since(began).Seconds()))
	return nil
}

// build creates a directory with the programs in bin.
func build(ctx context.Context, tell *Teller, programs []string) (string, error) {
	dir, err := os.MkdirTemp("", "sallyport-")
	if err != nil {
		return "", err
	}
	last := len(programs) - 1
	tell.Say(fmt.Sprintf("Building %s and %s ...", strings.Join(programs[:last], ", "), programs[last]))
	args := []string{"build", "-o", filepath.Join(dir, "bin") + "/"}
	for _, name := range programs {
		args = append(args, "sallyport/cmd/"+name)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	// The server's user, if the machine has one, must be able to reach its files.
	err = errors.Join(err, os.Chmod(dir, 0o711))
	if err != nil {
		err = fmt.Errorf("building the programs: %w\n%s", err, out)
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// close removes whatever exists: hosts, and with them their processes, then files.
func (s *Stage) close() error {
	var errs []error
	for _, h := range s.hosts {
		errs = append(errs, h.Close())
	}
	if s.cable != nil {
		errs = append(errs, s.cable.Close())
	}
	for _, server := range s.servers {
		<-server.ended // killed with its host
	}
	return errors.Join(append(errs, os.RemoveAll(s.Dir))...)
}

// explain adds the servers' messages to the error of a step.
func (s *Stage) explain(err error) error {
	for _, server := range s.servers {
		if log := server.Log(); err != nil && log != "" {
			err = fmt.Errorf("%w\nthe server on %s said:\n%s", err, server.host.Name(), log)
		}
	}
	return err
}

// Command runs a program on a host to its end and returns its output. It shows the command line after the host's name
// and a prompt, "#" or "$".
func (s *Stage) Command(ctx context.Context, on *Host, prompt, stdin, program string,
	args ...string) (string, error) {
	s.Prompt(on.Name()+prompt, program+" "+strings.Join(args, " "))
	return s.Quietly(ctx, on, stdin, program, args...)
}

// Quietly is Command, and shows nothing.
func (s *Stage) Quietly(ctx context.Context, on *Host, stdin, program string, args ...string) (string, error) {
	cmd := s.program(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := on.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	// The program runs in this directory.
	return strings.ReplaceAll(stdout.String()+stderr.String(), s.Dir+"/", "./"), nil
}

// program returns one of our programs, run in the stage's directory. It is asked to exit when ctx ends.
func (s *Stage) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.Dir, "bin", name), args...)
	cmd.Dir = s.Dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if s.Sees != nil {
		lab.See(cmd, s.Sees)
	}
	return cmd
}
