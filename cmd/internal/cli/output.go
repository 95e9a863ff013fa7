package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// ConfigFlag adds --config DIR to a program: the directory of its files.
func ConfigFlag(root *cobra.Command, dir *string, def string) {
	root.PersistentFlags().StringVar(dir, "config", def, "`DIR` with the configuration")
	root.MarkPersistentFlagDirname("config")
}

// JSONFlag adds --json to a command.
func JSONFlag(cmd *cobra.Command, on *bool) {
	cmd.Flags().BoolVar(on, "json", false, "print JSON, an object a line")
}

// JSON prints a value to standard output as one line.
func JSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// Colours of the words error, warning and hint, as ECMA-48 escape sequences.
const (
	red    = "\x1b[1;31m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
	plain  = "\x1b[0m"
)

// Colours reports whether w is a terminal that wants colours: not with NO_COLOR
// (no-color.org), nor where TERM is dumb or, as on Windows, unset.
func Colours(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

func paint(w io.Writer, colour, text string) string {
	if !Colours(w) {
		return text
	}
	return colour + text + plain
}
