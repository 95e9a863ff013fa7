// Package man writes the manual pages of the programs and of their files. A program's page is made from its commands,
// so it says what --help says. No program imports this package: tests write the pages and keep them up to date.
package man

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// cobra/doc makes a page for each command, in Markdown; mango-cobra makes one page, without the names of values and
// with broken paragraphs.

// Page is a manual page.
type Page struct {
	Name    string // "spa-server", "spa-server.toml"
	Section int    // of the manual: 1, 5 or 8
	About   string // a few words, for whatis(1)
	Parts   []Part
}

// Part is a headed part of a page. Its text consists of paragraphs, which blank lines separate:
//
//	A line of prose, which is filled.
//
//	  An indented line is an example, printed as it is.
//
//	term
//		A tab begins what is said about the term above it.
//
//	# A heading
type Part struct {
	Title, Text string
}

// ExitStatus is the text about the exit codes of a program; package cli has them.
const ExitStatus = `0
	The command did what was asked.

1
	It tried and failed.

2
	Misused: nothing was tried.

130 or 143
	It was interrupted by SIGINT or SIGTERM.`

// File returns the name of the page's file.
func (p Page) File() string { return fmt.Sprintf("%s.%d", p.Name, p.Section) }

// Program returns the page of a program, followed by further parts.
func Program(root *cobra.Command, section int, more ...Part) Page {
	var commands strings.Builder
	writeCommands(&commands, root)
	options := definitions(root.PersistentFlags()) + "--help\n\tPrint help, also for each command.\n\n" +
		"--version\n\tPrint the version.\n"
	parts := []Part{
		{"Synopsis", root.Name() + " COMMAND [OPTION]... [ARGUMENT]..."},
		{"Description", root.Long},
		{"Commands", commands.String()},
		{"Options of each command", options},
	}
	if root.Example != "" {
		parts = append(parts, Part{"Examples", root.Example})
	}
	return Page{Name: root.Name(), Section: section, About: lowerFirst(root.Short), Parts: append(parts, more...)}
}

// writeCommands writes the commands below one, and those below each of them.
func writeCommands(b *strings.Builder, above *cobra.Command) {
	for _, cmd := range above.Commands() {
		if cmd.IsAvailableCommand() && cmd.Name() != "help" && cmd.Name() != "completion" {
			writeCommand(b, cmd)
			writeCommands(b, cmd)
		}
	}
}

func writeCommand(b *strings.Builder, cmd *cobra.Command) {
	fmt.Fprintf(b, "# %s\n\n%s.\n\n", strings.TrimSuffix(cmd.UseLine(), " [flags]"), cmd.Short)
	if cmd.Long != "" {
		b.WriteString(cmd.Long + "\n\n")
	}
	b.WriteString(definitions(cmd.NonInheritedFlags()))
	if cmd.Example != "" {
		b.WriteString(cmd.Example + "\n\n")
	}
}

// definitions returns a definition of each flag, with its default.
func definitions(flags *pflag.FlagSet) string {
	var b strings.Builder
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(&b, "%s\n\t%s", strings.TrimSpace("--"+f.Name+" "+strings.ToUpper(value)), upperFirst(usage))
		switch f.DefValue {
		case "", "false", "0", "0s", "[]":
			b.WriteString(".\n\n")
		default:
			fmt.Fprintf(&b, ". Default: %s.\n\n", f.DefValue)
		}
	})
	return b.String()
}

func upperFirst(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
