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

// ConfigFlag adds the flag --config DIR, the directory of the program's files.
func ConfigFlag(root *cobra.Command, dir *string, def string) {
	root.PersistentFlags().StringVar(dir, "config", def, "`DIR` with the configuration")
	root.MarkPersistentFlagDirname("config")
}

// JSONFlag adds --json to a command.
func JSONFlag(cmd *cobra.Command, on *bool) {
	cmd.Flags().BoolVar(on, "json", false, "print JSON, one object per line")
}

// JSON prints a value to standard output as one line. It also escapes characters that JSON allows but that could
// control a terminal: see quote.Printable.
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

// escapeUnprintable escapes DEL and unprintable characters above ASCII. In JSON they occur only in strings.
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

// Colours reports whether w is a terminal that shows colours: not with NO_COLOR (no-color.org), and not if TERM is dumb
// or, as on Windows, unset.
func Colours(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "" && os.Getenv("TERM") != "dumb" && isTerminal(w)
}

func paint(w io.Writer, colour, text string) string {
	if !Colours(w) {
		return text
	}
	return colour + text + plain
}

// Clock formats a time: without the date if it is today, otherwise with date and zone. The zone also appears if it is
// not the current one: when clocks are set back, the same hour comes twice.
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
