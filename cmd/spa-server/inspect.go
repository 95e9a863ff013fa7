package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/quote"
	"sallyport/spa/server"
	"sallyport/spa/server/control"
)

func newInspect(dir *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what would have been decided about the packets in a capture file",
		Long: `Reads a capture file of tcpdump or Wireshark (pcap or pcapng, "-" is standard input) and
shows for each packet to a knock port what would have been decided about it when it was
captured: by a gateway that started just before the first packet, with the files as they
are now. Noise is summed up at the end, by reason.

It needs no running spa-server, and changes nothing: it opens no port, sends no answer and
spends no packet. It does not know which addresses the gateway had, so every datagram to a
knock port counts, whatever its destination address.`,
		Example: `  tcpdump -i any -w knocks.pcap udp port 62201
  spa-server inspect knocks.pcap
  ssh gw sudo tcpdump -w - udp port 62201 | spa-server inspect - --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := load(*dir)
			if err != nil {
				return err
			}
			file, err := openCapture(cmd.Context(), cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			defer file.Close()
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelError}))
			stats, err := server.Inspect(cmd.Context(), c, file, log, func(d control.Decision) error {
				return printPast(cmd, d, asJSON)
			})
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			cli.Note(cmd, "%d of %d packets have a knock's size", stats.Passed, stats.Received)
			if stats.Cut > 0 {
				cli.Warn(cmd, "%d more are truncated in the file: capture whole packets with tcpdump -s 0", stats.Cut)
			}
			return nil
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

// openCapture opens a file, or standard input.
func openCapture(ctx context.Context, in io.Reader, name string) (io.ReadCloser, error) {
	open := func() (io.ReadCloser, error) { return os.Open(name) }
	if name == "-" {
		open = func() (io.ReadCloser, error) { return io.NopCloser(in), nil }
	} else if info, err := os.Stat(name); err != nil || info.Mode().IsRegular() {
		return open()
	}
	// A pipe that an interrupt closes: opening or reading a FIFO without a writer cannot be interrupted.
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
	go func() {
		file, err := open()
		if err == nil {
			_, err = io.Copy(w, file)
		}
		w.CloseWithError(err)
	}()
	return r, nil
}

// printPast prints a decision with its date: the capture may be old.
func printPast(cmd *cobra.Command, d control.Decision, asJSON bool) error {
	if asJSON {
		return cli.JSON(cmd, d)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), d.Time.Local().Format("2006-01-02"), quote.Printable(decisionLine(d)))
	return err
}
