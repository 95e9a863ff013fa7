package bastion

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// The owners and modes that a file may have.
var (
	owners = []string{"root:root", "root:spa", "spa:spa", "nobody:spa", "nobody:nogroup"}
	modes  = []int{0o600, 0o640, 0o400, 0o660, 0o644}
)

// cell is an owner and a mode in the table.
type cell struct {
	owner string
	mode  int
}

func cells() []cell {
	var all []cell
	for _, owner := range owners {
		for _, mode := range modes {
			all = append(all, cell{owner, mode})
		}
	}
	return all
}

func (c cell) String() string { return fmt.Sprintf("%s %04o", c.owner, c.mode) }

// may applies the kernel's rules for a user with one group of the same name and no capability.
func (c cell) may(user string, want int) bool {
	uid, gid, _ := strings.Cut(c.owner, ":")
	mode := c.mode
	switch user {
	case uid:
		mode >>= 6
	case gid:
		mode >>= 3
	}
	return mode&want == want
}

// private reports whether a file with keys may be like this: readable only by root and the server.
func (c cell) private() bool {
	uid, _, _ := strings.Cut(c.owner, ":")
	return c.mode&0o027 == 0 && uid != "nobody" && c.owner != "root:nogroup"
}

const (
	read  = 0o4
	write = 0o6
)

// ruling says whether a file works at the start, before which root gives its own files to the user spa, and while the
// server runs.
type ruling struct {
	file, use  string
	start, run func(c cell) bool // run is nil if the file is not opened again
}

// kept is the ruling of a file that the server opens once.
func kept(c cell) bool { return c.may("root", write) || c.may("spa", write) }

func served(c cell) bool { return c.private() && c.may("spa", read) }

var rulings = []ruling{
	{"server.toml", "spa reads", func(cell) bool { return true }, // with the last good settings
		func(c cell) bool { return c.may("spa", read) }},
	{"gate.key", "spa reads", func(c cell) bool {
		return c.private() &&
			(c.may("root", read) || c.may("spa", read))
	}, served},
	{clientFiles, "spa reads", served, served},
	{"audit.jsonl", "spa writes", kept,
		func(c cell) bool { return c.may("spa", 0o2) }},
	{"journal", "spa writes", func(c cell) bool { return c.mode&0o022 == 0 && kept(c) }, nil},
	{"grants", "spa writes", kept, nil},
	{"keeper", "spa writes", kept, nil},
	{"lock", "spa writes", kept, nil},
}

const clientFiles = "clients/NAME.toml"

// table returns the page's table: the modes that work for each owner.
func table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| file | who | when | %s |\n|%s\n", strings.Join(owners, " | "),
		strings.Repeat("---|", 3+len(owners)))
	row := func(file, use, when string, works func(cell) bool) {
		fmt.Fprintf(&b, "| %s | %s | %s |", file, use, when)
		for _, owner := range owners {
			var good []string
			for _, mode := range modes {
				if works(cell{owner, mode}) {
					good = append(good, fmt.Sprintf("%o", mode))
				}
			}
			switch len(good) {
			case 0:
				good = []string{"–"}
			case len(modes):
				good = []string{"all"}
			}
			fmt.Fprintf(&b, " %s |", strings.Join(good, " "))
		}
		b.WriteString("\n")
	}
	for _, r := range rulings {
		row("`"+r.file+"`", r.use, "start", r.start)
		if r.run != nil {
			row("", "", "later", r.run)
		}
	}
	return b.String()
}

// TestFileTable: the page contains the table that TestFiles tests.
func TestFileTable(t *testing.T) {
	page := lab.Value(os.ReadFile("README.md"))(t)
	if !strings.Contains(string(page), "\n"+table()+"\n") {
		t.Errorf("README.md does not have the table of files:\n%s", table())
	}
}

// TestFiles tests who opens which file of the gateway, for each owner and mode, under the real units: what works at the
// start works later, or is refused with the command that fixes it.
func TestFiles(t *testing.T) {
	f := &fileTable{computer: guarded(t)}
	f.up()
	f.clients()
	f.whileItRuns()
	f.atTheStart()
	f.directories()
}

type fileTable struct {
	*computer
	rounds int
}

// set gives files of /etc/spa owners and modes.
func (f *fileTable) set(files map[string]cell) {
	f.t.Helper()
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		lines = append(lines, fmt.Sprintf("chown %s /etc/spa/%s; chmod %04o /etc/spa/%[2]s",
			files[name].owner, name, files[name].mode))
	}
	f.run(strings.Join(lines, "\n"))
}

// good restores all files.
func (f *fileTable) good() {
	f.t.Helper()
	f.run(`cd /etc/spa; chown root:spa server.toml gate.key; chmod 640 server.toml gate.key
chown spa:spa audit.jsonl; chmod 600 audit.jsonl
chown root:root journal grants keeper lock settings; chmod 600 journal grants keeper lock settings
systemctl reset-failed`)
}

// leftOut returns the clients that the server ignores, by name, and why.
func (f *fileTable) leftOut() map[string]string {
	f.t.Helper()
	var status struct {
		Left []struct{ Client, Why string } `json:"left_out"`
	}
	lab.Must(f.t, json.Unmarshal([]byte(f.run("spa-server status --json")), &status))
	out := make(map[string]string)
	for _, l := range status.Left {
		out[l.Client] = l.Why
	}
	return out
}

// problems returns the texts of check's problems.
func (f *fileTable) problems() string {
	out, _ := f.try("spa-server check --json || true")
	var texts []string
	for line := range strings.Lines(out) {
		var finding struct{ Severity, Subject, Text, Advice string }
		if json.Unmarshal([]byte(line), &finding) == nil && finding.Severity == "problem" {
			texts = append(texts, finding.Subject+": "+finding.Text+": "+finding.Advice)
		}
	}
	return strings.Join(texts, "\n")
}

// clients: each client's file has its own owner and mode.
func (f *fileTable) clients() {
	t := f.t
	files, refused := make(map[string]cell), make(map[string]bool)
	var lines []string
	for i, c := range cells() {
		name := "k" + strconv.Itoa(i)
		files["clients/"+name+".toml"] = c
		if !served(c) {
			refused[name] = true
		}
		lines = append(lines, "spa-keygen new "+name+" --allow ssh >/dev/null")
	}
	f.run(strings.Join(lines, "\n"))
	f.set(files)
	same := func(out map[string]string) bool { return sameKeys(out, refused) }
	lab.Eventually(t, "the clients to be left out that the law leaves out", func() bool { return same(f.leftOut()) })
	atRun := f.leftOut()
	f.run("systemctl restart spa-server")
	atStart := f.leftOut()
	if !same(atStart) {
		t.Errorf("at the start %v are left out, want %v", slices.Sorted(maps.Keys(atStart)),
			slices.Sorted(maps.Keys(refused)))
	}
	listed, _ := f.try("spa-keygen list 2>&1")
	check, _ := f.try("spa-server check")
	for i, c := range cells() {
		name := "k" + strconv.Itoa(i)
		if atRun[name] != atStart[name] {
			t.Errorf("%s (%v): at run %q, at the start %q", name, c, atRun[name], atStart[name])
		}
		for by, text := range map[string]string{"list": listed, "check": check} {
			if said := strings.Contains(text, "/"+name+".toml: "); said != refused[name] {
				t.Errorf("%s (%v): %s names it %v, want %v", name, c, by, said, refused[name])
			}
		}
	}
	for range 3 { // one fault at a time
		var commands []string
		for _, why := range f.leftOut() {
			commands = append(commands, command(t, why))
		}
		if len(commands) == 0 {
			break
		}
		f.run(strings.Join(commands, "\n"))
		lab.Eventually(t, "the mended files to be taken", func() bool {
			for name, why := range f.leftOut() {
				if slices.Contains(commands, command(t, why)) && name != "" {
					return false
				}
			}
			return true
		})
	}
	if out := f.leftOut(); len(out) > 0 {
		t.Errorf("after the printed commands, %v are still left out", out)
	}
	f.run("rm /etc/spa/clients/k*.toml")
}

func sameKeys(a map[string]string, b map[string]bool) bool {
	return slices.Equal(slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b)))
}

var mending = regexp.MustCompile(`(?:chown|chmod|chgrp|install) [^:]*(?::[^ :]* [^:]*)*$`)

// command returns the command at the end of a text.
func command(t *testing.T, text string) string {
	t.Helper()
	found := mending.FindString(strings.TrimSpace(text))
	if found == "" {
		t.Fatalf("there is no command in %q", text)
	}
	return found
}

// whileItRuns: each file that a reload opens again.
func (f *fileTable) whileItRuns() {
	t := f.t
	for _, r := range rulings {
		if r.run == nil || r.file == clientFiles {
			continue
		}
		n := 0
		for _, c := range cells() {
			if r.file == "audit.jsonl" { // a new one replaces the old one
				f.run("mv /etc/spa/audit.jsonl /etc/spa/audit.old; : > /etc/spa/audit.jsonl")
			}
			f.set(map[string]cell{r.file: c})
			out, err := f.try("spa-server reload")
			if (err == nil) != r.run(c) {
				t.Errorf("%s (%v) at a reload: %v, want it to work: %v\n%s", r.file, c, err, r.run(c), out)
			}
			if r.run(c) {
				continue
			}
			if n++; n%4 == 1 { // it takes its time
				if problems := f.problems(); !strings.Contains(problems, "/etc/spa/"+r.file) &&
					!strings.Contains(problems, "gate.key") {
					t.Errorf("%s (%v): check does not name it:\n%s", r.file, c, problems)
				}
			}
			for range 3 {
				if out, err = f.try("spa-server reload"); err == nil {
					break
				}
				_, hint, _ := strings.Cut(out, "hint: ")
				if text := out[:strings.Index(out, "hint: ")]; !strings.HasPrefix(hint, "chown") &&
					!strings.HasPrefix(hint, "install") {
					hint = text[:strings.Index(text, "\n")]
				}
				f.try(command(t, hint))
			}
			if err != nil {
				t.Errorf("%s (%v): after the printed commands:\n%s", r.file, c, out)
			}
		}
		f.good()
	}
}

// started restarts the server and returns its output.
func (f *fileTable) start() (string, error) {
	f.rounds++
	_, err := f.try("systemctl stop spa-server; systemctl start spa-server")
	if err == nil {
		if status := f.run("spa-server status"); !strings.Contains(status, "spa-keeper, process ") {
			f.t.Errorf("the guard has no keeper:\n%s", status)
		}
		return "", nil
	}
	out := f.run("systemctl stop spa-server; systemctl reset-failed spa-server; journalctl -b --no-pager -o " +
		"cat -n 12 -u spa-server")
	return out, err
}

// atTheStart: files that work are tested all at once, the others one by one.
func (f *fileTable) atTheStart() {
	t := f.t
	working := make(map[string][]cell)
	most := 0
	for _, r := range rulings {
		if r.file == clientFiles {
			continue
		}
		var bad []cell
		for _, c := range cells() {
			if r.start(c) {
				working[r.file] = append(working[r.file], c)
			} else {
				bad = append(bad, c)
			}
		}
		most = max(most, len(working[r.file]))
		for i, c := range bad {
			f.set(map[string]cell{r.file: c})
			if i%4 == 0 { // it takes its time
				problems := f.problems()
				if !regexp.MustCompile(`(?m)^.*/etc/spa/` + r.file + `.*: .*(chown|chmod) `).MatchString(problems) {
					t.Errorf("%s (%v): check does not name it, with the command:\n%s", r.file, c, problems)
				}
			}
			out, err := f.start()
			if err == nil {
				t.Errorf("%s (%v): the server starts", r.file, c)
			} else if !strings.Contains(out, "/etc/spa/"+r.file) || !strings.Contains(out, "chown") &&
				!strings.Contains(out, "chmod") {
				t.Errorf("%s (%v): it does not say what to do:\n%s", r.file, c, out)
			}
		}
		f.good()
	}
	f.set(map[string]cell{"gate.key": {"root:root", 0o600}})
	f.start()
	if log := f.run("journalctl -b --no-pager -o cat -n 12 -u spa-server"); !strings.Contains(log,
		"the group spa may read /etc/spa/gate.key") {
		t.Errorf("the log does not say what was changed:\n%s", log)
	}
	if out, err := f.try("spa-server reload"); err != nil {
		t.Errorf("reload with a key that the start made legible: %v\n%s", err, out)
	}
	f.good()
	for n := range most {
		files := make(map[string]cell)
		for file, cs := range working {
			files[file] = cs[n%len(cs)]
		}
		f.set(files)
		if out, err := f.start(); err != nil {
			t.Errorf("%v: %v\n%s", files, err, out)
			f.good()
		}
	}
	f.good()
}

// directories: all belong to the server, or the state is in its own directory.
func (f *fileTable) directories() {
	t := f.t
	for _, line := range []string{
		"chown -R spa:spa /etc/spa; chmod -R u=rwX,g=,o= /etc/spa",
		"chown -R root:spa /etc/spa; chmod 750 /etc/spa /etc/spa/clients; chmod 640 /etc/spa/*.* /etc/spa/clients/*",
	} {
		f.run(line)
		if out, err := f.start(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
			continue
		}
		f.run("spa-server reload")
		f.run("systemctl kill -s KILL spa-server; systemctl reset-failed spa-server; systemctl restart spa-server")
		f.knock()
		if problems := f.problems(); strings.Contains(problems, "/etc/spa") {
			t.Errorf("%s: check says\n%s", line, problems)
		}
	}
	t.Logf("%d starts", f.rounds)
}
