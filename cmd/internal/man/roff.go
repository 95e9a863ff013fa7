package man

import (
	"fmt"
	"regexp"
	"strings"
)

// noDate stands in a page for the day of the release.
const noDate = `""`

// Roff returns the page in the macros of man(7).
func (p Page) Roff() string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s %d %s Sallyport\n", escape(strings.ToUpper(p.Name)), p.Section, noDate)
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", escape(p.Name), escape(p.About))
	for _, part := range p.Parts {
		fmt.Fprintf(&b, ".SH %s\n", strings.ToUpper(part.Title))
		after := true // a heading: what follows needs no space
		for _, paragraph := range paragraphs(part.Text) {
			after = writeParagraph(&b, paragraph, after)
		}
	}
	return b.String()
}

// paragraphs splits a text at blank lines, and where an example begins or ends.
func paragraphs(text string) [][]string {
	var all [][]string
	fresh := true
	for _, line := range strings.Split(text, "\n") {
		switch n := len(all) - 1; {
		case strings.TrimSpace(line) == "":
			fresh = true
		case fresh || isExample(line) != isExample(all[n][0]):
			all = append(all, []string{line})
			fresh = false
		default:
			all[n] = append(all[n], line)
		}
	}
	return all
}

func isExample(line string) bool { return strings.HasPrefix(line, "  ") }

// writeParagraph reports whether it was a heading.
func writeParagraph(b *strings.Builder, lines []string, afterHeading bool) bool {
	if heading, ok := strings.CutPrefix(lines[0], "# "); ok {
		fmt.Fprintf(b, ".SS %s\n", escape(heading))
		return true
	}
	if len(lines) > 1 && strings.HasPrefix(lines[1], "\t") {
		fmt.Fprintf(b, ".TP\n.B %s\n%s", escape(lines[0]), fill(lines[1:]))
		return false
	}
	if !afterHeading {
		b.WriteString(".PP\n")
	}
	if !isExample(lines[0]) {
		b.WriteString(fill(lines))
		return false
	}
	b.WriteString(".RS 4\n.nf\n")
	for _, line := range lines {
		b.WriteString(safe(escape(strings.TrimPrefix(line, "  "))) + "\n")
	}
	b.WriteString(".fi\n.RE\n")
	return false
}

var flags = regexp.MustCompile(`(^|[\s("])(--[a-z][a-z-]*)`)

// fill returns prose in short lines, with flags in bold.
func fill(lines []string) string {
	const width = 76
	var b strings.Builder
	line := ""
	for _, word := range strings.Fields(strings.Join(lines, " ")) {
		word = escape(flags.ReplaceAllString(word, "$1\x01$2\x02"))
		word = strings.NewReplacer("\x01", `\fB`, "\x02", `\fR`).Replace(word)
		if line != "" && len(line)+1+len(word) > width {
			b.WriteString(safe(line) + "\n")
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	b.WriteString(safe(line) + "\n")
	return b.String()
}

// escape makes characters print as themselves: an unescaped hyphen or quotation mark becomes a typographic one, which
// no shell understands.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(s)
}

// safe keeps a line from being taken for a macro.
func safe(line string) string {
	if strings.HasPrefix(line, ".") {
		return `\&` + line
	}
	return line
}
