package survey

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// saver is a program that prints the tables of iptables.
type saver struct {
	how     kind
	family  string
	names   []string // of the program; the first one installed is used
	program string   // the program that changes these tables
	proc    string   // where the kernel lists tables that only this program can read
}

var savers = []saver{
	{iptables, "ip", []string{"iptables-nft-save", "iptables-save"}, "iptables", ""},
	{iptables, "ip6", []string{"ip6tables-nft-save", "ip6tables-save"}, "ip6tables", ""},
	{legacy, "ip", []string{"iptables-legacy-save", "iptables-save"}, "iptables-legacy", "ip_tables_names"},
	{legacy, "ip6", []string{"ip6tables-legacy-save", "ip6tables-save"}, "ip6tables-legacy", "ip6_tables_names"},
}

// sbin is searched too, because a user's path may leave it out.
var sbin = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// addSaved adds the tables of iptables. They replace what the kernel listed of the same tables, in which matches of
// xtables are opaque.
func (r *Ruleset) addSaved(ctx context.Context) error {
	var problems []error
	for _, s := range savers {
		if !r.concerns(s) {
			continue
		}
		if err := r.addFrom(ctx, s); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// concerns reports whether there are tables that only this program can read. A program that is not run loads no
// module and makes no table.
func (r *Ruleset) concerns(s saver) bool {
	if s.proc != "" {
		names, err := os.ReadFile("/proc/thread-self/net/" + s.proc)
		return len(names) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
	}
	for name, bases := range savedBases {
		t := r.tables[tableKey{nftables, s.family, name}]
		if t == nil {
			continue
		}
		if t.chains["OUTPUT"] != nil { // only replies to packets from outside meet it
			return true
		}
		for base := range bases {
			if t.chains[base] != nil {
				return true
			}
		}
	}
	return false
}

func (r *Ruleset) addFrom(ctx context.Context, s saver) error {
	program, err := find(s.names)
	if err != nil {
		return fmt.Errorf("%w: tables of %s exist, but %s to list them is not installed", errNotRead, s.program, s.names[0])
	}
	version, err := run(ctx, program, "--version") // before 1.8.8 the listing does not name the backend
	if err != nil {
		return fmt.Errorf("%w: %w", errNotRead, err)
	}
	if nft := strings.Contains(version, "nf_tables"); nft != (s.how == iptables) {
		return fmt.Errorf("%w: %s does not list the tables of %s: install the kind of iptables that made them",
			errNotRead, program, s.program)
	}
	text, err := run(ctx, program)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotRead, err)
	}
	found := r.addText(s.how, s.family, s.program, text)
	if s.how == iptables {
		for _, name := range found {
			r.choose(tableKey{nftables, s.family, name})
		}
	}
	return nil
}

// choose keeps what the program printed of a table of nf_tables. For a table with base chains of other names, which
// the program calls incompatible, it prints nothing; then choose keeps what was read from the kernel.
func (r *Ruleset) choose(read tableKey) {
	printed := tableKey{iptables, read.family, read.name}
	builtIn := []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
	if t := r.tables[read]; t != nil {
		for _, c := range t.chains {
			if c.hook != noHook && !slices.Contains(builtIn, c.name) {
				delete(r.tables, printed)
				return
			}
		}
	}
	delete(r.tables, read)
}

func find(names []string) (string, error) {
	var err error
	for _, name := range names {
		var path string
		if path, err = exec.LookPath(name); err == nil {
			return path, nil
		}
		for _, dir := range sbin {
			if path, err = exec.LookPath(dir + "/" + name); err == nil {
				return path, nil
			}
		}
	}
	return "", err
}

// run returns a program's output.
func run(ctx context.Context, program string, args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}
