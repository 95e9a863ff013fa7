package main

import (
	"errors"
	"fmt"
	"image/png"
	"io"
	"os"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
)

// handing is how to hand out a token; by default it is printed.
type handing struct {
	out string // a new file
	png string // a new file, as a QR code
	qr  bool   // drawn on standard output
}

func (h *handing) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&h.out, "out", "", "write the token to `FILE` (mode 0600) instead of printing it")
	cmd.Flags().StringVar(&h.png, "png", "", "write the token as a QR code to `FILE` (mode 0600) instead of printing it")
	cmd.Flags().BoolVar(&h.qr, "qr", false, "draw the token as a QR code instead of printing it")
}

// give hands out a client's token completely, or not at all: of a recovery key as a page to print.
func (h *handing) give(cmd *cobra.Command, client *keys.Client, p *keys.Profile) error {
	token, what := p.Token(), "enrolment token"
	code, err := h.code(token)
	if err != nil {
		return err
	}
	if p.Recovery {
		if token, err = page(client, p); err != nil {
			return err
		}
		what = "recovery page"
	}
	if err := h.write(token, code); err != nil {
		return err
	}
	if err := h.print(cmd, token, code); err != nil {
		return errors.Join(err, h.remove())
	}
	for _, file := range []string{h.out, h.png} {
		if file != "" {
			cli.Note(cmd, "the %s of %s is in %s", what, client.Name, file)
		}
	}
	return nil
}

// code returns the token as a QR code, or nil if none is wanted.
func (h *handing) code(token string) (*code, error) {
	if !h.qr && h.png == "" {
		return nil, nil
	}
	return encode(token)
}

// write writes both files or neither.
func (h *handing) write(token string, code *code) error {
	if h.out != "" {
		if err := writeSecret(h.out, func(w io.Writer) error { return line(w, token) }); err != nil {
			return err
		}
	}
	if h.png == "" {
		return nil
	}
	err := writeSecret(h.png, func(w io.Writer) error { return png.Encode(w, code.image()) })
	if err != nil && h.out != "" {
		os.Remove(h.out)
	}
	return err
}

func (h *handing) print(cmd *cobra.Command, token string, code *code) error {
	w := cmd.OutOrStdout()
	switch {
	case h.qr:
		return code.draw(w, cli.Colours(w))
	case h.out == "" && h.png == "":
		return line(w, token)
	}
	return nil
}

func (h *handing) remove() error {
	var errs []error
	for _, file := range []string{h.out, h.png} {
		if file != "" {
			errs = append(errs, os.Remove(file))
		}
	}
	return errors.Join(errs...)
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
