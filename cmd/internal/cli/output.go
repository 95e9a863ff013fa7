package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

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

// JSON prints a value to standard output as one line. What a terminal may not have is escaped in it, also
// what JSON would let stand: see quote.Printable.
func JSON(cmd *cobra.Command, v any) error {
	var line strings.Builder
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	if err == nil {
		_, err = io.WriteString(cmd.OutOrStdout(), escapeUnprintable(line.String()))
	}
	if err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

// escapeUnprintable escapes what is above ASCII, or DEL, and cannot be seen. In JSON it stands in
// strings alone.
func escapeUnprintable(line string) string {
	if !strings.ContainsFunc(line, isUnprintable) {
		return line
	}
	var b strings.Builder
	for _, r := range line {
		if !isUnprintable(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

func isUnprintable(r rune) bool { return r >= 0x7f && !unicode.IsPrint(r) }

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

// Clock returns a time as people read it: of today without the date, otherwise with date and zone. The zone is there
// too where it is not the present one: in the hour when clocks are set back the same time comes twice.
func Clock(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	_, zone := t.Zone()
	_, present := now.Zone()
	switch {
	case t.Format(time.DateOnly) != now.Format(time.DateOnly):
		return t.Format(time.DateTime + " MST")
	case zone != present:
		return t.Format(time.TimeOnly + " MST")
	}
	return t.Format(time.TimeOnly)
}
