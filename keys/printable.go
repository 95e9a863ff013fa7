package keys

import (
	"strings"
	"unicode"
)

// Printable returns s with a question mark for each character that would end the line, move a terminal's
// cursor, change its colours, turn the order of reading round (U+202E) or cannot be seen. Texts that others
// chose go through it on their way to a terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(s, "?"))
}

// PrintableLines is Printable for each line of a text.
func PrintableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = Printable(line)
	}
	return strings.Join(lines, "\n")
}
