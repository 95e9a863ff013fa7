package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// handing is how a token is handed out.
type handing struct {
	out string // a new file; empty: standard output
}

func (h *handing) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&h.out, "out", "", "write the token to `FILE` (mode 0600) instead of printing it")
}

// give hands out a client's token, all of it or nothing.
func (h *handing) give(cmd *cobra.Command, name, token string) error {
	if h.out == "" {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), token)
		return err
	}
	if err := writeSecret(h.out, func(w io.Writer) error { return line(w, token) }); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "the enrolment token of %s is in %s\n", name, h.out)
	return nil
}

func line(w io.Writer, text string) error {
	_, err := fmt.Fprintln(w, text)
	return err
}

// writeSecret writes a new file that only its owner can read.
func writeSecret(path string, write func(io.Writer) error) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(write(file), file.Sync(), file.Close()); err != nil {
		os.Remove(path)
		return err
	}
	return nil
}
