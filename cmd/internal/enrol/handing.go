package enrol

import (
	"errors"
	"fmt"
	"image/png"
	"io"
	"os"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
)

// A Handing is how to hand out a token; by default it is printed.
type Handing struct {
	Out string // a new file
	PNG string // a new file, as a QR code
	QR  bool   // drawn on standard output
}

// Flags adds the flags --out, --png and --qr to a command.
func (h *Handing) Flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&h.Out, "out", "", "write the token to `FILE` (mode 0600) instead of printing it")
	cmd.Flags().StringVar(&h.PNG, "png", "", "write the token as a QR code to `FILE` (mode 0600) instead of printing it")
	cmd.Flags().BoolVar(&h.QR, "qr", false, "draw the token as a QR code instead of printing it")
}

// Give hands out a client's token completely, or not at all. The text, which is called what, is the token itself or a
// page that holds it.
func (h *Handing) Give(cmd *cobra.Command, client, token, what, text string) error {
	code, err := h.code(token)
	if err != nil {
		return err
	}
	if err := h.write(text, code); err != nil {
		return err
	}
	if err := h.print(cmd, text, code); err != nil {
		return errors.Join(err, h.remove())
	}
	for _, file := range []string{h.Out, h.PNG} {
		if file != "" {
			cli.Note(cmd, "the %s of %s is in %s", what, client, file)
		}
	}
	return nil
}

// code returns the token as a QR code, or nil if none is wanted.
func (h *Handing) code(token string) (*Code, error) {
	if !h.QR && h.PNG == "" {
		return nil, nil
	}
	return Encode(token)
}

// write writes both files or neither.
func (h *Handing) write(token string, code *Code) error {
	if h.Out != "" {
		if err := writeSecret(h.Out, func(w io.Writer) error { return line(w, token) }); err != nil {
			return err
		}
	}
	if h.PNG == "" {
		return nil
	}
	err := writeSecret(h.PNG, func(w io.Writer) error { return png.Encode(w, code.Image()) })
	if err != nil && h.Out != "" {
		os.Remove(h.Out)
	}
	return err
}

func (h *Handing) print(cmd *cobra.Command, token string, code *Code) error {
	w := cmd.OutOrStdout()
	switch {
	case h.QR:
		return code.Draw(w, cli.Colours(w))
	case h.Out == "" && h.PNG == "":
		return line(w, token)
	}
	return nil
}

func (h *Handing) remove() error {
	var errs []error
	for _, file := range []string{h.Out, h.PNG} {
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
