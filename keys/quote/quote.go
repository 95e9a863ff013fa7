// Package quote makes text that others chose safe for a terminal or a shell.
package quote

import (
	"fmt"
	"strings"
	"unicode"
)

// Printable replaces with a question mark each character that would end the line, move a terminal's cursor, change its
// colours, reverse the reading order (U+202E) or be invisible. Text that others chose goes through it before it reaches
// a terminal.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(s, "?"))
}

// Lines applies Printable to each line of a text.
func Lines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = Printable(line)
	}
	return strings.Join(lines, "\n")
}

// Shell quotes a path for a shell if necessary. The result is printable.
func Shell(s string) string {
	plain := func(r rune) bool {
		return r < 0x80 && ('a' <= r && r <= 'z' || '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' ||
			strings.ContainsRune("/._-", r))
	}
	if s != "" && s[0] != '-' && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	if Printable(s) == s {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	var b strings.Builder // as bash and zsh read it, and POSIX since 2024
	for i := range len(s) {
		if c := s[i]; ' ' <= c && c <= '~' && c != '\'' && c != '\\' {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, `\x%02x`, s[i])
	}
	return "$'" + b.String() + "'"
}
