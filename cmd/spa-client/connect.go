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
it, and joins standard input and output to the connection. It is made for ssh's
ProxyCommand: spa-client ssh-config prints the block for ssh's configuration.
It connects in the address family that was granted, to the service's TCP port; if the
service has several, choose one with --port.

Connect begins the connection two milliseconds after the knock, so both take one round
trip together. If it was too early, connect begins another one when the answer arrives. If
the gateway has IPv4 and IPv6 addresses, only IPv4 is that fast. After a refusal, connect
closes the connection.

With --fdpass, connect hands the connection itself to the program that reads standard
output, as ssh's ProxyUseFdpass expects, and exits: no process remains between ssh and
the gateway. Windows does not support it.

A gateway that has just started accepts no knocks for its window, and may say so: connect
then waits, unless a shorter --timeout is given. If no answer comes, it tries the port
once: perhaps only the answer was lost.

Exit status: 0 the connection ended, 125 there was no connection (refused, no answer,
misused, any other reason), 130 or 143 interrupted.`,
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
	cli.OwnFailures(cmd, cli.NotRun)
	k.reach(cmd)
	cmd.Flags().Var(&port, "port", "TCP `PORT` of a service that has several")
	cmd.Flags().BoolVar(&fdpass, "fdpass", false, "hand over the connection and exit: for ssh's ProxyUseFdpass")
	return cmd
}

// oneService checks that there is one argument and that it can be a service.
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
		_, err := client.OnlyPort(asked, known, port) // reported before anything is sent, if the profile knows the ports
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

// noteLost reports that no answer came, but that the port accepts connections.
func (k *knock) noteLost(cmd *cobra.Command) {
	cli.Note(cmd, "no answer from %s, but %s accepts connections: only the answer was lost, or the port is open "+
		"without a knock", k.plan.Profile.Name, k.services())
}

// whichPort returns the hint if it is unclear which port to connect to.
func whichPort(e *client.PortError) string {
	if len(e.Ports) > 0 && !e.HasTCP() {
		return "connect needs a TCP port; for anything else use spa-client open or spa-client exec"
	}
	return "choose one: --port PORT"
}

// undialled returns the error if there is no connection.
func (k *knock) undialled(cmd *cobra.Command, answers []client.Answer, err error) error {
	if cmd.Context().Err() != nil {
		return cmd.Context().Err()
	}
	var wrong *client.PortError
	if errors.As(err, &wrong) {
		return cli.Fail(wrong, whichPort(wrong)) // only once: the error is the same in each family
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

// unreached returns the error for a service that was opened but cannot be reached.
func (k *knock) unreached(a client.Answer, err error) error {
	exit := &cli.Exit{Code: cli.Failed, Err: err, Hint: "find out why: spa-client doctor --host " + k.plan.Profile.Name,
		More: []string{"likely: the service is not running, or a firewall on the gateway or on the way blocks the port"}}
	if a.Receipt != nil && a.Receipt.Source.IsValid() {
		exit.More = append(exit.More, fmt.Sprintf("%s let in %v: connections from another address (a VPN, a NAT with "+
			"several) do not get in", k.plan.Profile.Name, service.NetworkText(a.LetIn())))
	}
	if a.Receipt != nil && slices.ContainsFunc(a.Receipt.Services, func(g spa.Granting) bool { return g.Once }) {
		exit.More = append(exit.More, "only the first connection gets in: if another one from the same address was first, "+
			"even one that failed, knock again")
	}
	return exit
}

// join copies both ways until both sides have ended. The end of one direction is passed on, and the other stays open.
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

// errUnheard is returned if the reader of standard output has gone: there is no one to report to.
var errUnheard = errors.New("standard output was closed")

// send copies the input, then closes the connection's sending half.
func send(conn net.Conn, in io.Reader) error {
	if _, err := io.Copy(conn, in); err != nil && !gone(err) {
		return fmt.Errorf("sending to the gateway: %w", err)
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite() // the other side may have gone already
	}
	return nil
}

// receive copies what the gateway sends, then closes the output.
func receive(out io.WriteCloser, conn net.Conn) error {
	_, err := io.Copy(out, conn)
	if ours, ok := errors.AsType[*fs.PathError](err); ok { // a file, so the output
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

// portFlag is a port given as a flag.
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

// Type returns the value's name in the help text.
func (p *portFlag) Type() string { return "PORT" }
