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

// programTime is how long a program may take, including waiting for the lock and for kernel modules, which take a
// slow machine seconds to load. It is shorter than the daemon waits for a reply.
const programTime = 30 * time.Second

// lockExit is the exit code for resource problems, including the lock of iptables.
const lockExit = 4

var errForeignChain = errors.New(`iptables chains named "spa-..." exist that are not ours; rename or remove ` +
	`them (iptables -t mangle -S)`)

// Programs is what the helper found. It is its first message to the daemon.
type Programs struct {
	Trouble    string // why nothing works; empty: no problem
	Legacy     bool   // legacy iptables, which has its own tables in the kernel
	Version    string
	NoIPv6     bool   // the kernel has no IPv6
	NoSets     string // why rules cannot match ipsets; empty: they can
	Privileges sandbox.State

	quotes bool // rules can match the packet that an ICMP error quotes
	handed bool // rules can match packets that were assigned to a socket early

	nat bool // the table nat may have chains of ours

	ipt    map[bool]*iptables.IPTables // true: for IPv6
	suffix string                      // of the programs' names: "-legacy", "-nft" or ""
	lock   string                      // the lock file of legacy iptables
}

// Kinds of iptables, in the words of the programs.
const (
	KindLegacy = "legacy"
	kindNft    = "nf_tables"
)

// programError is the failure of a program.
type programError struct {
	name string
	code int
	said string
}

func (e *programError) Error() string {
	return fmt.Sprintf("%s: exit %d: %s", e.name, e.code, e.said)
}

// busy reports whether the program failed because another one holds the lock.
func (e *programError) busy() bool { return e.code == lockExit }

// endedError is a program killed after programTime.
type endedError struct {
	name  string
	doing string // when it was killed
	said  string
}

func (e *endedError) Error() string {
	text := fmt.Sprintf("%s was killed after %v, %s", e.name, programTime, e.doing)
	if e.said != "" {
		text += ": " + e.said
	}
	return text
}

// command returns a program's name for a family.
func (p *Programs) command(v6 bool, part string) string {
	if v6 {
		return "ip6tables" + p.suffix + part
	}
	return "iptables" + p.suffix + part
}

// families returns the kernel's families: false for IPv4, true for IPv6.
func (p *Programs) families() []bool {
	if p.NoIPv6 {
		return []bool{false}
	}
	return []bool{false, true}
}

// findPrograms looks for iptables and probes what the kernel lets its rules do. If kind is not the host's default, it
// uses the programs named after that kind.
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
	p.nat = !p.Legacy || os.Geteuid() == 0 // others cannot look for a legacy table without creating it
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
		hint += ", or guarded ports would be open over IPv6, which this kernel supports"
	}
	return fmt.Errorf("no program %s in %s; %s", name, os.Getenv("PATH"), hint)
}

// oldEnough returns an error for iptables before 1.6.2, whose iptables-restore does not wait for the lock.
func oldEnough(name string, ipt *iptables.IPTables) error {
	major, minor, patch := ipt.GetIptablesVersion()
	if slices.Compare([]int{major, minor, patch}, []int{1, 6, 2}) < 0 {
		return fmt.Errorf("%s is version %d.%d.%d; 1.6.2 or later is required", name, major, minor, patch)
	}
	return nil
}

// kindOf returns the kind that the program reports: "nf_tables" or "legacy". Before 1.8 there was only the legacy
// kind. go-iptables does not report it.
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

// sameKind refuses a mixture of kinds, which would put rules into two sets of tables.
func sameKind(kinds []string) error {
	_, first, _ := strings.Cut(kinds[0], " is ")
	for _, kind := range kinds {
		if !strings.HasSuffix(kind, " is "+first) {
			return fmt.Errorf("%s, but %s: choose one kind for all (update-alternatives --config iptables, and ip6tables)",
				kinds[0], kind)
		}
	}
	if first != KindLegacy && first != kindNft {
		return fmt.Errorf("%s: unknown kind of iptables", kinds[0])
	}
	return nil
}

// Rules to probe, in a chain that no packet enters, and the removal of that chain. None uses connection tracking,
// which would start before there is a guard: see Bare.
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

// probe tries rules, so that a missing feature is known before anything depends on it.
func (p *Programs) probe() error {
	for _, v6 := range p.families() {
		if err := p.restoreSometime(v6, probeAll); err != nil {
			return fmt.Errorf("iptables or the kernel lacks something that the guard needs: %w", err)
		}
		if err := p.restoreSometime(v6, fmt.Sprintf(probeSets, SetName(SetProbe, v6))); err != nil {
			p.NoSets = err.Error()
		}
		p.quotes = p.restoreSometime(v6, probeQuotes) == nil && (p.quotes || !v6)
		p.handed = p.restoreSometime(v6, probeHanded) == nil && (p.handed || !v6)
	}
	return nil
}

// restoreSometime is restore with retries while another program holds the lock, for as long as a start may take.
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

// restore loads rules with iptables-restore, the only program that changes a table in one transaction. go-iptables
// does not support it.
func (p *Programs) restore(v6 bool, rules string, wait bool) error {
	name := p.command(v6, "-restore")
	if !wait && p.locked() {
		return &programError{name, lockExit, "another program holds " + p.lock}
	}
	_, err := p.run(name, rules, "--noflush", "--wait", "1")
	return err
}

// locked reports whether another program holds the lock. iptables-nft needs none; legacy iptables, told not to wait,
// waits for ever.
func (p *Programs) locked() bool {
	if !p.Legacy {
		return false
	}
	f, err := os.Open(p.lock)
	if err != nil {
		return false // not locked yet, or iptables will report the problem
	}
	defer f.Close()
	return errors.Is(statefile.Flock(f, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// save returns the current contents of a table. Legacy iptables would create a missing table just by listing it.
func (p *Programs) save(v6 bool, t table) (*saved, error) {
	if p.Legacy {
		names, err := os.ReadFile(map[bool]string{false: "/proc/self/net/ip_tables_names",
			true: "/proc/self/net/ip6_tables_names"}[v6])
		hidden := errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 // then create it: it is about to be used
		if err != nil && !hidden && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if !hidden && !slices.Contains(strings.Fields(string(names)), t.name) {
			return ParseSaved(t, ""), nil
		}
	}
	out, err := p.run(p.command(v6, "-save"), "", "-t", t.name)
	if err != nil {
		return nil, err
	}
	return ParseSaved(t, out), nil
}

// run runs a program and returns its output. Its result is the program's exit code alone.
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
			doing += fmt.Sprintf(", %v of CPU time", (u.UserTime() + u.SystemTime()).Round(time.Millisecond))
		}
		return "", &endedError{name, doing, line(said.String())}
	case errors.As(err, &exit) && !exit.Exited():
		return "", fmt.Errorf("%s was killed: %w", name,
			err) // "bad system call" where it is for another processor than this program
	case errors.As(err, &exit):
		return "", &programError{name, exit.ExitCode(), line(said.String())}
	}
	return "", fmt.Errorf("starting %s: %w", name, err)
}

// whatDoes returns the state of a process (proc_pid_stat(5)): whether a program that takes too long computes (R),
// waits in the kernel (D), or waits for an event (S). iptables itself does not report it.
func whatDoes(pid int) string {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return fmt.Sprintf("in state %.1s", state)
}
