package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
)

func (a *app) connectCommand() *cobra.Command {
	k := &knock{app: a, patient: true}
	var port portFlag
	var fdpass bool
	cmd := &cobra.Command{
		Use:   "connect SERVICE",
		Short: "Open a service and join standard input and output to it",
		Long: `Connect asks the gateway to open a service for this machine's address, connects to
it, and joins standard input and output to the connection: it is made for
ssh's ProxyCommand, and spa-client ssh-config prints what belongs into ssh's configuration.
It connects in the family that was granted, and to the service's TCP port; where it
has several, --port says to which.

With --fdpass the connection itself is handed to the program that reads standard
output, as ssh wants it with ProxyUseFdpass, and connect leaves: nothing stands
between ssh and the gateway then. Windows has no such thing.

A gateway that has just started takes no knocks for its window, and may say so: connect
then waits for it, unless --timeout is given and is shorter. Where no answer comes the
port is tried once: it is open if only the answer was lost.

Exit status: 0 the connection ended, 125 it did not come about (refused, no answer,
misused, anything else), 130 or 143 interrupted.`,
		Example: `  ssh -o ProxyCommand='spa-client connect ssh --host gw' gw.example.net
  spa-client connect tcp/8443 --host gw`,
		Args: oneService,
		RunE: func(cmd *cobra.Command, args []string) error {
			conn, err := k.dial(cmd, args[0], uint16(port))
			if err != nil {
				return err
			}
			defer conn.Close()
			if fdpass {
				return passOn(os.Stdout, conn)
			}
			return join(cmd.Context(), conn, os.Stdin, os.Stdout)
		},
		ValidArgsFunction: k.completeService,
	}
	cli.OwnFailures(cmd)
	k.reach(cmd)
	cmd.Flags().Var(&port, "port", "TCP `PORT` of a service that has several")
	cmd.Flags().BoolVar(&fdpass, "fdpass", false, "hand the connection over and leave: for ssh's ProxyUseFdpass")
	return cmd
}

// oneService checks that there is one argument and that it could be a service.
func oneService(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("connect takes one service, not %d", len(args))
	}
	return serviceArgs(cmd, args)
}

// dial opens a service and connects to it.
func (k *knock) dial(cmd *cobra.Command, service string, port uint16) (net.Conn, error) {
	if err := k.prepare(cmd, spa.TypeOpen, []string{service}, 0); err != nil {
		return nil, err
	}
	asked := k.plan.Command.Services[0]
	if known := k.plan.Ports(asked); len(known) > 0 || !k.plan.Profile.Receipts {
		_, err := client.OnlyPort(asked, known, port) // told before anything is sent, where the profile knows it
		if several := new(client.PortError); port == 0 && errors.As(err, &several) {
			return nil, cli.Misuse(err, whichPort(several))
		}
	}
	done := k.shown.show("knocking on " + k.plan.Profile.Name)
	conn, answers, err := k.plan.Dial(cmd.Context(), port)
	done()
	if err != nil {
		return nil, k.undialled(cmd, answers, err)
	}
	if k.plan.Profile.Receipts && !slices.ContainsFunc(answers,
		func(a client.Answer) bool { return a.Verdict == client.Opened }) {
		k.noteLost(cmd)
	}
	return conn, nil
}

// noteLost says that nothing was heard, and that the port accepts all the same.
func (k *knock) noteLost(cmd *cobra.Command) {
	cli.Note(cmd, "no answer from %s, but %s accepts connections: only the answer was lost, or the port is open "+
		"without a knock", k.plan.Profile.Name, k.services())
}

// whichPort is what to do where it is not clear to which port to connect.
func whichPort(e *client.PortError) string {
	if len(e.Ports) > 0 && !e.HasTCP() {
		return "connect needs a TCP port; for anything else use spa-client open or spa-client exec"
	}
	return "choose one: --port PORT"
}

// undialled says why there is no connection.
func (k *knock) undialled(cmd *cobra.Command, answers []client.Answer, err error) error {
	if cmd.Context().Err() != nil {
		return cmd.Context().Err()
	}
	var wrong *client.PortError
	if errors.As(err, &wrong) {
		return cli.Fail(wrong, whichPort(wrong)) // once, though each family has the same to say
	}
	for _, a := range answers {
		k.caution(cmd, a)
	}
	for _, a := range answers {
		if a.Verdict == client.Opened {
			return k.unreached(a, fmt.Errorf("%s opened %s, but %w", k.plan.Profile.Name, k.services(), err))
		}
	}
	if len(answers) == 0 {
		return err
	}
	return k.conclude(cmd, answers)
}

// unreached is the end of a command whose service was opened and cannot be reached.
func (k *knock) unreached(a client.Answer, err error) error {
	exit := &cli.Exit{Code: cli.Failed, Err: err, Hint: "find out why: spa-client doctor --host " + k.plan.Profile.Name,
		More: []string{"likely: the service is not running, or a firewall on the gateway or on the way blocks the port"}}
	if a.Receipt != nil && a.Receipt.Source.IsValid() {
		exit.More = append(exit.More, fmt.Sprintf("%s let in %v: connections from another address (a VPN, a NAT with "+
			"several) do not get in", k.plan.Profile.Name, a.Receipt.Source))
	}
	return exit
}

// join copies both ways until each side has said its last. What one side ends is
// ended for the other, and the way back stays open.
func join(ctx context.Context, conn net.Conn, in io.Reader, out io.WriteCloser) error {
	sent := make(chan error, 1)
	received := make(chan error, 1)
	go func() { sent <- send(conn, in) }()
	go func() { received <- receive(out, conn) }()
	for ends := 0; ends < 2; ends++ {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err = <-sent:
			sent = nil
		case err = <-received:
			received = nil
		}
		if errors.Is(err, errUnheard) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// errUnheard is returned where whoever read the output has gone: nobody is left to be told.
var errUnheard = errors.New("nobody reads standard output any more")

// send copies what comes in, and ends the connection's sending half.
func send(conn net.Conn, in io.Reader) error {
	if _, err := io.Copy(conn, in); err != nil && !gone(err) {
		return fmt.Errorf("sending to the gateway: %w", err)
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite() // the other side may have gone: then nothing is left to be ended
	}
	return nil
}

// receive copies what the gateway sends, and ends the output.
func receive(out io.WriteCloser, conn net.Conn) error {
	_, err := io.Copy(out, conn)
	if ours, ok := errors.AsType[*fs.PathError](err); ok { // of a file, so of the output
		if gone(ours) {
			return errUnheard
		}
		return fmt.Errorf("writing to standard output: %w", ours.Err)
	}
	if err != nil {
		return fmt.Errorf("receiving from the gateway: %w", err)
	}
	out.Close()
	return nil
}

// portFlag is a port as a flag has it.
type portFlag uint16

// String is empty without a port.
func (p *portFlag) String() string {
	if *p == 0 {
		return ""
	}
	return fmt.Sprint(uint16(*p))
}

// Set reads a port.
func (p *portFlag) Set(text string) error {
	ports, err := service.ParsePorts("tcp/" + text)
	if err != nil || ports.Low != ports.High {
		return errors.New("a port is a number from 1 to 65535")
	}
	*p = portFlag(ports.Low)
	return nil
}

// Type is what the help calls the value.
func (p *portFlag) Type() string { return "PORT" }
