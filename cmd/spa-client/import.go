package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
)

// maxToken is more than any token with its line breaks.
const maxToken = 64 << 10

func (a *app) importCommand() *cobra.Command {
	var name string
	var replace bool
	cmd := &cobra.Command{
		Use:   "import [FILE|-]",
		Short: "Add a host from an enrolment token",
		Long: `Import reads the token that spa-keygen made for this client and keeps what it says
as a host. The token is read from a file, or from standard input without one: it
holds a key, and every user of this machine can read arguments. A host that is
there already is not written over unless --replace says so.`,
		Example: `  spa-client import alice.token
  ssh admin@gw cat alice.token | spa-client import --name gw`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("name") {
				if err := keys.ValidName(name); err != nil {
					return cli.Misuse(err, "choose another --name")
				}
			}
			file := "-"
			if len(args) == 1 {
				file = args[0]
			}
			return a.importToken(cmd, file, name, replace)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the host here; the gateway's own without it")
	cmd.Flags().BoolVar(&replace, "replace", false, "write over a host of that name")
	return cmd
}

func (a *app) importToken(cmd *cobra.Command, file, name string, replace bool) error {
	text, err := readToken(cmd, file)
	if err != nil {
		return err
	}
	p, err := keys.ParseToken(text)
	if err != nil {
		return cli.Fail(err, "a token is one line, as spa-keygen new printed it, from spa1 to its end")
	}
	if name != "" {
		p.Name = name
	}
	dir, err := a.hostsDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of hosts: %w", err)
	}
	err = keys.WriteProfile(dir, p, replace)
	if errors.Is(err, keys.ErrExists) {
		return cli.Fail(fmt.Errorf("there is a host %s already", p.Name), "--name adds it under another name, --replace writes over it")
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "imported %s: %s as %s%s\n", p.Name, p.Address, p.Client, offered(p))
	if file != "-" {
		cli.Note(cmd, "%s still holds the key: delete it", file)
	}
	return nil
}

// offered lists a profile's services in brackets.
func offered(p *keys.Profile) string {
	if len(p.Services) == 0 {
		return ""
	}
	return " (" + strings.Join(serviceNames(p), ", ") + ")"
}

// readToken reads a file, standard input, or what is typed at a terminal.
func readToken(cmd *cobra.Command, file string) (string, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("reading the token: %w", err)
		}
		defer f.Close()
		return readAll(cmd.Context(), f)
	}
	if in, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		return readHidden(cmd, int(in.Fd()))
	}
	return readAll(cmd.Context(), cmd.InOrStdin())
}

// readHidden asks for the token without showing it.
func readHidden(cmd *cobra.Command, fd int) (string, error) {
	state, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	defer term.Restore(fd, state) // also when interrupted: or the terminal would go on hiding
	defer fmt.Fprintln(cmd.ErrOrStderr())
	fmt.Fprint(cmd.ErrOrStderr(), "paste the token (it is not shown): ")
	return interruptible(cmd.Context(), func() ([]byte, error) { return term.ReadPassword(fd) })
}

func readAll(ctx context.Context, r io.Reader) (string, error) {
	return interruptible(ctx, func() ([]byte, error) { return io.ReadAll(io.LimitReader(r, maxToken)) })
}

// interruptible reads unless ctx ends before. A read that nothing comes for is then
// left behind: the program ends.
func interruptible(ctx context.Context, read func() ([]byte, error)) (string, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := read()
		done <- result{b, err}
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case r := <-done:
		if r.err != nil {
			return "", fmt.Errorf("reading the token: %w", r.err)
		}
		return string(r.b), nil
	}
}
