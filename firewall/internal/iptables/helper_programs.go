package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/statefile"
	"sallyport/spa/sandbox"
)

// programTime is how long a program may take, waiting for the lock and for modules of the kernel
// included, which a slow machine loads for seconds. It is less than the daemon waits for an answer.
const programTime = 30 * time.Second

// lockExit is the exit code for trouble with resources: the lock of iptables among them.
const lockExit = 4

var errForeignChain = errors.New(`there are chains named "spa-..." of iptables that are not ours; rename or remove ` +
	`them (iptables -t mangle -S)`)

// Programs is what the helper found, and tells the daemon first of all.
type Programs struct {
	Trouble string // not empty: nothing works, and why
	Legacy  bool   // the older kind of iptables, with tables of its own in the kernel
	Version string
	NoIPv6  bool   // the kernel has no IPv6
	NoSets  string // why rules cannot ask ipsets; empty: they can
	Left    sandbox.State

	quotes bool // rules can look into what an ICMP error quotes
	handed bool // rules can see that a packet was handed to a socket

	ipt    map[bool]*iptables.IPTables // by whether it is for IPv6
	suffix string                      // of the programs' names, before what they do
	lock   string                      // of the older kind
}

// Kinds of iptables, as the programs call themselves.
const (
	KindLegacy = "legacy"
	kindNft    = "nf_tables"
)

// programError is a program that failed.
type programError struct {
	name string
	code int
	said string
}

func (e *programError) Error() string {
	return fmt.Sprintf("%s: exit %d: %s", e.name, e.code, e.said)
}

// busy reports whether another program was in the way.
func (e *programError) busy() bool { return e.code == lockExit }

// endedError is a program that took longer than programTime.
type endedError struct {
	name  string
	doing string // when it was ended
	said  string
}

func (e *endedError) Error() string {
	return fmt.Sprintf("%s was ended after %v, %s: %s", e.name, programTime, e.doing, e.said)
}

// command is a program's name in a family.
func (p *Programs) command(v6 bool, part string) string {
	if v6 {
		return "ip6tables" + p.suffix + part
	}
	return "iptables" + p.suffix + part
}

// families are those that the kernel speaks, as whether they are IPv6.
func (p *Programs) families() []bool {
	if p.NoIPv6 {
		return []bool{false}
	}
	return []bool{false, true}
}

// findPrograms looks for iptables and asks the kernel what it lets its rules do. Where a
// kind is asked for that is not the host's choice, it goes by another name.
func findPrograms(kind, lock string) (*Programs, error) {
	p := &Programs{ipt: make(map[bool]*iptables.IPTables), lock: lock}
	if kind != "" {
		if usual, err := p.kindOf("iptables"); err != nil || usual != kind {
			p.suffix = map[string]string{KindLegacy: "-legacy", kindNft: "-nft"}[kind]
		}
	}
	if _, err := os.Stat("/proc/net/if_inet6"); errors.Is(err, fs.ErrNotExist) {
		p.NoIPv6 = true
	}
	var kinds []string
	for _, v6 := range p.families() {
		family := iptables.ProtocolIPv4
		if v6 {
			family = iptables.ProtocolIPv6
		}
		ipt, err := iptables.New(iptables.IPFamily(family), iptables.Timeout(1), iptables.Path(p.command(v6, "")))
		if err != nil {
			return nil, p.missing(p.command(v6, ""), err)
		}
		if err := oldEnough(p.command(v6, ""), ipt); err != nil {
			return nil, err
		}
		p.ipt[v6] = ipt
		for _, part := range []string{"", "-save", "-restore"} {
			kind, err := p.kindOf(p.command(v6, part))
			if err != nil {
				return nil, p.missing(p.command(v6, part), err)
			}
			kinds = append(kinds, p.command(v6, part)+" is "+kind)
			p.Legacy = kind == KindLegacy
		}
	}
	if err := sameKind(kinds); err != nil {
		return nil, err
	}
	major, minor, patch := p.ipt[false].GetIptablesVersion()
	p.Version = fmt.Sprintf("%d.%d.%d", major, minor, patch)
	return p, p.probe()
}

func (p *Programs) missing(name string, err error) error {
	if !errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s does not work: %w", name, err)
	}
	hint := "install the package iptables"
	if strings.HasPrefix(name, "ip6") {
		hint += ", or guarded ports would be open over IPv6, which this kernel speaks"
	}
	return fmt.Errorf("there is no program %s in %s; %s", name, os.Getenv("PATH"), hint)
}

// oldEnough: iptables-restore waits for the lock since 1.6.2.
func oldEnough(name string, ipt *iptables.IPTables) error {
	major, minor, patch := ipt.GetIptablesVersion()
	if slices.Compare([]int{major, minor, patch}, []int{1, 6, 2}) < 0 {
		return fmt.Errorf("%s is version %d.%d.%d, and 1.6.2 is the oldest that will do", name, major, minor, patch)
	}
	return nil
}

// kindOf is "nf_tables" or "legacy": what the program says of itself. Before 1.8 there was
// one kind. go-iptables does not tell.
func (p *Programs) kindOf(name string) (string, error) {
	out, err := p.run(name, "", "--version")
	if err != nil {
		return "", err
	}
	if m := regexp.MustCompile(`\((\w+)\)`).FindStringSubmatch(out); m != nil {
		return m[1], nil
	}
	return KindLegacy, nil
}

// sameKind refuses a mixture: rules would come to stand in two tables.
func sameKind(kinds []string) error {
	_, first, _ := strings.Cut(kinds[0], " is ")
	for _, kind := range kinds {
		if !strings.HasSuffix(kind, " is "+first) {
			return fmt.Errorf("%s, but %s: choose one kind for all (update-alternatives --config iptables, and ip6tables)",
				kinds[0], kind)
		}
	}
	if first != KindLegacy && first != kindNft {
		return fmt.Errorf("%s, a kind of iptables that is not known here", kinds[0])
	}
	return nil
}

// What rules need, in a chain that no packet comes to, and the end of that chain. Nothing of
// connection tracking, which would begin before there is a guard: see bare.
const (
	probeAway = "\n-F spa-probe\n-X spa-probe\nCOMMIT\n"
	probeAll  = "*mangle\n:spa-probe - [0:0]\n" +
		"-A spa-probe -m addrtype --dst-type LOCAL -m comment --comment probe -j RETURN\n" +
		"COMMIT\n*mangle" + probeAway +
		"*raw\n:spa-probe - [0:0]\n-A spa-probe -p udp -m mark --mark 1/1 -j CT --notrack\nCOMMIT\n*raw" + probeAway
	probeSets = "*mangle\n:spa-probe - [0:0]\n-A spa-probe -m set --match-set %[1]s src,dst -j RETURN\n" +
		"-A spa-probe -j SET --add-set %[1]s src,dst --exist --timeout 1\nCOMMIT\n*mangle" + probeAway
	probeHanded = "*mangle\n:spa-probe - [0:0]\n-A spa-probe -p udp -m cgroup ! --cgroup 4294967295 -m socket " +
		"--nowildcard --transparent -j RETURN\nCOMMIT\n*mangle" + probeAway
	probeQuotes = "*mangle\n:spa-probe - [0:0]\n-A spa-probe -m u32 --u32 0=0 -j RETURN\nCOMMIT\n*mangle" + probeAway
)

// probe tries rules, so that what is missing is known before anything depends on it.
func (p *Programs) probe() error {
	for _, v6 := range p.families() {
		if err := p.restoreSometime(v6, probeAll); err != nil {
			return fmt.Errorf("iptables or the kernel lacks what the guard needs: %w", err)
		}
		if err := p.restoreSometime(v6, fmt.Sprintf(probeSets, SetName(SetProbe, v6))); err != nil {
			p.NoSets = err.Error()
		}
		p.quotes = p.restoreSometime(v6, probeQuotes) == nil && (p.quotes || !v6)
		p.handed = p.restoreSometime(v6, probeHanded) == nil && (p.handed || !v6)
	}
	return nil
}

// restoreSometime waits for the lock as long as a start may take.
func (p *Programs) restoreSometime(v6 bool, rules string) error {
	var err error
	for range 10 {
		err = p.restore(v6, rules, true)
		var trouble *programError
		if !errors.As(err, &trouble) || !trouble.busy() {
			return err
		}
	}
	return err
}

// restore loads rules: go-iptables has no iptables-restore, which alone changes a table in
// one transaction.
func (p *Programs) restore(v6 bool, rules string, wait bool) error {
	name := p.command(v6, "-restore")
	if !wait && p.locked() {
		return &programError{name, lockExit, "another program holds " + p.lock}
	}
	_, err := p.run(name, rules, "--noflush", "--wait", "1")
	return err
}

// locked reports whether another program is at work. The newer kind needs no lock; the older
// one, asked not to wait, waits for ever.
func (p *Programs) locked() bool {
	if !p.Legacy {
		return false
	}
	f, err := os.Open(p.lock)
	if err != nil {
		return false // nobody has locked yet, or iptables says what is wrong
	}
	defer f.Close()
	return errors.Is(statefile.Flock(f, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// save is a table as it is. The older kind would make a table by asking for it.
func (p *Programs) save(v6 bool, t table) (*saved, error) {
	if p.Legacy {
		names, err := os.ReadFile(map[bool]string{false: "/proc/self/net/ip_tables_names",
			true: "/proc/self/net/ip6_tables_names"}[v6])
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if !slices.Contains(strings.Fields(string(names)), t.name) {
			return ParseSaved(t, ""), nil
		}
	}
	out, err := p.run(p.command(v6, "-save"), "", "-t", t.name)
	if err != nil {
		return nil, err
	}
	return ParseSaved(t, out), nil
}

// run runs a program, and believes its exit code.
func (p *Programs) run(name, input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), programTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	doing := ""
	cmd.Cancel = func() error { doing = whatDoes(cmd.Process.Pid); return cmd.Process.Kill() }
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out.String(), nil
	case ctx.Err() != nil:
		if u := cmd.ProcessState; u != nil {
			doing += fmt.Sprintf(", %v of it at work", (u.UserTime() + u.SystemTime()).Round(time.Millisecond))
		}
		return "", &endedError{name, doing, line(said.String())}
	case errors.As(err, &exit) && !exit.Exited():
		return "", fmt.Errorf("%s was ended: %w", name,
			err) // "bad system call" where it is for another processor than this program
	case errors.As(err, &exit):
		return "", &programError{name, exit.ExitCode(), line(said.String())}
	}
	return "", fmt.Errorf("starting %s: %w", name, err)
}

// whatDoes is the state of a process (proc_pid_stat(5)): whether one that takes too long computes (R), waits for a
// lock of the kernel (D) or for an answer (S). A program of iptables does not say.
func whatDoes(pid int) string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return fmt.Sprintf("in state %.1s", state)
}
