package bastion

import (
	"bufio"
	"os"
	"regexp"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// step is a command of the page.
type step struct {
	heading string // the heading above it
	line    int
	home    bool     // on Alice's machine, not on the bastion
	command string   // for a shell
	prints  []string // output lines on the page
}

const prompt = "alice$ " // of commands on Alice's machine

// others matches commands on machines that the test does not have.
var others = regexp.MustCompile(`^carol\$ `)

// steps returns the commands of a page: the lines of its sh blocks, and those after a prompt in its console blocks.
func steps(t *testing.T, page string) []step {
	t.Helper()
	file := lab.Value(os.Open(page))(t)
	defer file.Close()
	var found []step
	heading, block := "", ""
	scanner := bufio.NewScanner(file)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimSpace(scanner.Text())
		switch {
		case strings.HasPrefix(line, "```"):
			block = line[len("```"):]
		case block == "" && strings.HasPrefix(line, "#"):
			heading = strings.TrimSpace(strings.TrimLeft(line, "#"))
		case block == "sh":
			found = append(found, step{heading: heading, line: n, command: line})
		case block == "toml": // settings: TestPageSettings loads them
		case block == "console" && others.MatchString(line):
		case block == "console" && strings.HasPrefix(line, prompt):
			found = append(found, step{heading: heading, line: n, home: true, command: line[len(prompt):]})
		case block == "console":
			last := &found[len(found)-1]
			last.prints = append(last.prints, line)
		case block != "":
			t.Fatalf("%s:%d: a block of %q, which is neither sh, console nor toml", page, n, block)
		}
	}
	return found
}

var numbers = regexp.MustCompile(`[0-9]+`)

// shows reports whether the output contains a line of the page, apart from numbers.
func shows(output, line string) bool {
	return strings.Contains(numbers.ReplaceAllString(output, "0"), numbers.ReplaceAllString(line, "0"))
}

// mentioned matches commands in the page's text.
var mentioned = regexp.MustCompile("`(spa-(?:server|keygen|client) [a-z][^`]*)`")

// TestMentioned: a command in the text is also in a block, so it is tested.
func TestMentioned(t *testing.T) {
	text := lab.Value(os.ReadFile("README.md"))(t)
	var ran []string
	for _, s := range steps(t, "README.md") {
		ran = append(ran, s.command)
	}
	all := strings.Join(ran, "\n") + "\n"
	for _, match := range mentioned.FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(all, match[1]) {
			t.Errorf("the page mentions %q, and no block of it runs that", match[1])
		}
	}
}
