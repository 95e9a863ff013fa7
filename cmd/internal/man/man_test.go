package man

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"sallyport/spa/lab"
)

// hostile is full of what roff would take for its own.
const hostile = `.so /etc/passwd
'so /etc/shadow \fBbold\fR and back\slash, it's "quoted" ~ ^ ` + "`" + `

  .de in an example
  'tis \n[.g] --flag

Prose that goes on (--flag) and on, until a line is so long that it has to be broken somewhere, before a .dot
that would begin it. .TH`

// TestRoff: a page prints every word of all commands as it was given, and mandoc finds no fault with it.
func TestRoff(t *testing.T) {
	root := &cobra.Command{Use: "prog", Short: "Does .this", Long: hostile, Example: "  prog --a 'b'"}
	sub := &cobra.Command{Use: "sub ARG", Short: "Sub", Long: hostile, Run: func(*cobra.Command, []string) {}}
	sub.Flags().Int("count", 7, "how `MANY`, .or\\none")
	sub.Flags().Bool("quiet", false, "say 'nothing'")
	hidden := &cobra.Command{Use: "secret", Short: "Secret", Hidden: true, Run: func(*cobra.Command, []string) {}}
	group := &cobra.Command{Use: "group", Short: "Group"}
	group.AddCommand(&cobra.Command{Use: "inner", Short: "Nested", Run: func(*cobra.Command, []string) {}})
	root.AddCommand(sub, hidden, group)
	page := Program(root, 8, Part{"Files", Settings("[t] # x\nkey = 1  # the 'key'\n# other = \"a\"  # .x\n", nil)})
	path := filepath.Join(t.TempDir(), page.File())
	lab.Must(t, os.WriteFile(path, []byte(page.Roff()), 0o644))
	lint(t, page)
	out := lab.Value(exec.Command("mandoc", "-T", "ascii", "-O", "width=78", path).Output())(t)
	plain := lab.Value(exec.Command("sh", "-c", `printf %s "$1" | sed 's/.`+"\b"+`//g'`, "sh", string(out)).Output())(t)
	text := " " + strings.Join(strings.Fields(string(plain)), " ") + " "
	for _, word := range strings.Fields(strings.Repeat(hostile+" ", 2) +
		" prog - does .this sub ARG --count MANY How MANY, .or\\none. Default: 7. --quiet Say 'nothing'. prog --a 'b' " +
		" prog group Group. inner Nested. key The 'key'. Default: 1. other .x. For example: \"a\".") {
		if !strings.Contains(text, " "+word+" ") {
			t.Errorf("the page has no %q:\n%s", word, plain)
		}
	}
	if strings.Contains(text, "ecret") {
		t.Error("a hidden command is on the page")
	}
}
